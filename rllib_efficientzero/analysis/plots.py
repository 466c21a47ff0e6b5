"""All plots of `analysis`; matplotlib (`pip install 'rllib_efficientzero[plot]'`) is imported when one is drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rllib_efficientzero.analysis.aggregates import Interval

HUMAN = 1.0
PANELS_PER_ROW = 4
Lines = Sequence[tuple[Sequence[float], Sequence[float]]]
"""(x, y) of each line."""


class MissingMatplotlibError(ImportError):
    """Matplotlib is not installed, so that nothing can be drawn."""


def new_figure(width: float, height: float, *, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Makes a figure without a window; returns it with its axes (an array if there are several).

    Raises:
        MissingMatplotlibError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingMatplotlibError(
            "plots need matplotlib, which is not installed: run pip install 'rllib_efficientzero[plot]'"
        ) from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def png(figure: Any, note: str = "") -> bytes:
    """Returns the figure as a PNG file, with a `note` below it, such as that its numbers mean nothing."""
    if note:
        figure.supxlabel(note, fontsize=8, color="firebrick")
    buffer = io.BytesIO()
    # Leaves matplotlib's version out, so that equal data give equal files.
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def bars(values: Mapping[str, Mapping[str, Interval]], *, note: str = "") -> bytes:
    """Draws Figure 1: one panel of bars per aggregate, with a bar per method (the same in all) and a line for a human.

    Args:
        values: aggregate ("mean") -> method -> value.
        note: see `png`.
    """
    figure, axes = new_figure(9, 3.6, columns=len(values))
    for column, (axis, (name, methods)) in enumerate(zip(np.atleast_1d(axes), values.items(), strict=True)):
        lengths = [interval.value for interval in methods.values()]
        errors = [
            [np.nan if v.low is None else v.value - v.low for v in methods.values()],
            [np.nan if v.high is None else v.high - v.value for v in methods.values()],
        ]
        colours = ["tab:orange" if method.startswith("this package") else "tab:blue" for method in methods]
        axis.barh(range(len(methods)), lengths, xerr=errors, color=colours, capsize=3)
        # Names of methods only in the first panel: long ones would overlap the others.
        axis.set_yticks(range(len(methods)), [""] * len(methods) if column else list(methods), fontsize=8)
        axis.invert_yaxis()
        axis.axvline(HUMAN, color="grey", linestyle="--", linewidth=1)
        axis.set_title(f"human-normalised {name}", fontsize=9)
    return png(figure, note)


def curves(panels: Mapping[str, Mapping[str, Lines]], *, x_label: str, y_label: str, note: str = "") -> bytes:
    """Draws lines with points, in panels side by side.

    Args:
        panels: title -> label -> its lines; a label has the same colour in all panels.
        x_label: of all panels.
        y_label: of all panels.
        note: see `png`.
    """
    columns = min(len(panels), PANELS_PER_ROW)
    rows = math.ceil(len(panels) / columns)
    width, height = (6.0, 4.2) if len(panels) == 1 else (3.0 * columns, 0.8 + 2.4 * rows)
    figure, axes = new_figure(width, height, rows=rows, columns=columns)
    every_axis = np.atleast_1d(axes).ravel()
    drawn: dict[str, Any] = {}
    for axis, (title, series) in zip(every_axis, panels.items(), strict=False):
        for label, lines in series.items():
            for x, y in lines:
                colour = drawn[label].get_color() if label in drawn else f"C{len(drawn)}"
                (line,) = axis.plot(x, y, marker=".", color=colour)
                drawn.setdefault(label, line)
        axis.set(xlabel=x_label, ylabel=y_label)
        axis.set_title(title, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in every_axis[len(panels) :]:
        axis.set_axis_off()
    figure.legend(drawn.values(), drawn.keys(), loc="outside upper center", ncols=2, fontsize=8)
    return png(figure, note)


def image_grid(
    rows: Mapping[str, np.ndarray], *, column_titles: Sequence[str], title: str = "", note: str = ""
) -> bytes:
    """Rows of images.

    Args:
        rows: label -> `[columns, H, W, C]` floats in 0..1, C is 1 or 3.
        column_titles: of the columns.
        title: above all of them.
        note: see `png`.
    """
    figure, axes = new_figure(
        1.2 * len(column_titles) + 1.6, 1.25 * len(rows) + 0.6, rows=len(rows), columns=len(column_titles)
    )
    grid = np.reshape(axes, (len(rows), len(column_titles)))
    for row, (label, images) in zip(grid, rows.items(), strict=True):
        for axis, image in zip(row, images, strict=True):
            shown = image[..., 0] if image.shape[-1] == 1 else image
            axis.imshow(np.clip(shown, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    for axis, text in zip(grid[0], column_titles, strict=True):
        axis.set_title(text, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=9)
    return png(figure, note)
