"""A document of tables and figures, as one self-contained HTML file and as Markdown."""

from __future__ import annotations

import base64
import html
import pathlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 12px; margin: .5rem 0; display: block; overflow-x: auto; }
th, td { border: 1px solid #ccc; padding: .2rem .4rem; text-align: left; max-width: 28rem; overflow-wrap: break-word; }
th { background: #f3f3f3; vertical-align: bottom; }
.number { text-align: right; }
.caption { color: #555; font-size: 13px; max-width: 60rem; }
.warning { color: #a11; font-weight: 600; }
img { max-width: 100%; }
"""


@dataclass(frozen=True)
class Text:
    """A paragraph; a `warning` is printed so that it is not overlooked."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Table:
    """A table of text cells; an empty cell stands for a number that is missing."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.title!r} has {len(self.columns)} columns, and a row of another length")

    def is_number(self, column: int) -> bool:
        """Whether all cells of a column (not the first one) are empty or begin with a number."""
        return column > 0 and all(re.match(r"(≠ )?-?\d|$", row[column]) for row in self.rows)


@dataclass(frozen=True)
class Figure:
    """A picture."""

    title: str
    png: bytes
    caption: str = ""


Block = Text | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)


def write(directory: pathlib.Path, title: str, sections: Sequence[Section]) -> list[pathlib.Path]:
    """Writes `report.html`, with its figures embedded, and `report.md`, with its figures in `figures/`.

    Returns:
        The two files.
    """
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    figures = [block for section in sections for block in section.blocks if isinstance(block, Figure)]
    paths = {id(block): f"figures/{number:02d}-{_slug(block.title)}.png" for number, block in enumerate(figures, 1)}
    for block in figures:
        (directory / paths[id(block)]).write_bytes(block.png)
    files = {
        directory / "report.html": to_html(title, sections),
        directory / "report.md": _markdown(title, sections, paths),
    }
    for file, content in files.items():
        file.write_text(content, encoding="utf-8")
    return list(files)


def to_html(title: str, sections: Sequence[Section]) -> str:
    """Returns the whole document as HTML that refers to no other file."""
    body = [f"<h1>{_escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{_escape(section.title)}</h2>")
        body += [_html_block(block) for block in section.blocks]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _escape(text: str) -> str:
    return html.escape(text, quote=False)


def _html_block(block: Block) -> str:
    if isinstance(block, Text):
        kind = ' class="warning"' if block.warning else ""
        return f"<p{kind}>{_escape(block.text)}</p>"
    caption = f'<p class="caption">{_escape(block.caption)}</p>' if block.caption else ""
    heading = f"<h3>{_escape(block.title)}</h3>"
    if isinstance(block, Figure):
        data = base64.b64encode(block.png).decode()
        return f'{heading}<img alt="{html.escape(block.title)}" src="data:image/png;base64,{data}">{caption}'
    kinds = [' class="number"' if block.is_number(column) else "" for column in range(len(block.columns))]
    head = "".join(f"<th{kind}>{_escape(name)}</th>" for name, kind in zip(block.columns, kinds, strict=True))
    rows = "\n".join(f"<tr>{_html_cells(row, kinds)}</tr>" for row in block.rows)
    return f"{heading}<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>{caption}"


def _html_cells(cells: Sequence[str], kinds: Sequence[str]) -> str:
    found = []
    for cell, kind in zip(cells, kinds, strict=True):
        # So that an interval is not broken after its comma.
        text = _escape(cell).replace(", ", ",&nbsp;") if kind else _escape(cell)
        found.append(f"<td{kind}>{text}</td>")
    return "".join(found)


def _markdown(title: str, sections: Sequence[Section], figure_paths: dict[int, str]) -> str:
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for block in section.blocks:
            lines += [*_markdown_block(block, figure_paths), ""]
    return "\n".join(lines)


def _markdown_block(block: Block, figure_paths: dict[int, str]) -> list[str]:
    if isinstance(block, Text):
        return [f"**{block.text}**" if block.warning else block.text]
    lines = [f"### {block.title}", ""]
    if isinstance(block, Figure):
        lines.append(f"![{block.title}]({figure_paths[id(block)]})")
    else:
        alignment = ["---:" if block.is_number(column) else "---" for column in range(len(block.columns))]
        lines += [_markdown_row(block.columns), _markdown_row(alignment)]
        lines += [_markdown_row(row) for row in block.rows]
    return [*lines, "", block.caption] if block.caption else lines


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
