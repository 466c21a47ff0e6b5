"""Draws a search tree as SVG, alone or in a page with a table of the root's actions. Depth grows to the right."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from html import escape

from rllib_efficientzero.playing.search_tree import Node, SearchTree

MAX_DRAWN = 300
"""Most nodes in a drawing; of larger trees, the most visited nodes are drawn."""
COLUMN, ROW, MARGIN, LABEL = 190, 26, 24, 150
STYLE = """
svg.tree, body { color-scheme: light dark; font: 12px system-ui, sans-serif; }
svg.tree { background: light-dark(#fff, #15181d); }
svg.tree text { fill: light-dark(#222, #ddd); }
svg.tree text { paint-order: stroke; stroke: light-dark(#fff, #15181d); stroke-width: 3px; }
svg.tree path { fill: none; stroke: light-dark(#bbb, #555); }
svg.tree path.line { stroke: #e07a1f; }
svg.tree circle { fill: #4a86d8; }
svg.tree circle.line { fill: #e07a1f; }
body { margin: 1.5em; background: light-dark(#fff, #15181d); }
table { border-collapse: collapse; } td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #8884; }
.scroll { overflow-x: auto; }
"""


@dataclasses.dataclass
class _Placed:
    node: Node
    x: float
    y: float


def tree_svg(tree: SearchTree, action_names: Sequence[str], title: str = "") -> str:
    """Returns the drawing: circles' areas and edges' widths grow with visits, and the principal line stands out."""
    shown = _most_visited(tree)
    placed = _place(tree, shown)
    on_line = {0, *(node.slot for node in tree.principal_line())}
    width = MARGIN * 2 + LABEL + COLUMN * max((p.node.depth for p in placed.values()), default=0)
    height = MARGIN * 2 + ROW * max(1, sum(1 for p in placed.values() if not _shown_children(p.node, shown)))
    parts = [
        f'<svg class="tree" xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img"><title>{escape(title or "search tree")}</title>'
        f"<style>{STYLE}</style>"
    ]
    total = max(1, tree.root.visits)
    for spot in placed.values():
        if spot.node.slot:
            parts.append(_edge(placed[spot.node.parent], spot, total, spot.node.slot in on_line))
    for spot in placed.values():
        parts.append(_node(spot, tree, action_names, total, spot.node.slot in on_line))
    return "\n".join([*parts, "</svg>"])


def tree_html(tree: SearchTree, action_names: Sequence[str], title: str) -> str:
    """Returns a self-contained page: a table of the root's actions, and the drawing."""
    rows = "".join(
        f"<tr><th>{escape(tree.name_of(child, action_names))}</th><td>{child.visits}</td><td>{child.prior:.3f}</td>"
        f"<td>{child.qvalue(tree.discount):.3f}</td><td>{child.reward:.3f}</td><td>{child.value:.3f}</td></tr>"
        for child in tree.root.children
    )
    line = tree.principal_line()
    told = " → ".join(
        f"{escape(tree.name_of(node, action_names))} ({prefix:+.2f})"
        for node, prefix in zip(line, tree.value_prefixes(line), strict=True)
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1>"
        f"<p>Value of the root {tree.root.value:.3f}, {tree.root.visits} visits. "
        f"Principal line (value prefix): {told or 'none'}.</p>"
        "<table><tr><th>action</th><th>visits</th><th>prior</th><th>Q</th><th>reward</th><th>value</th></tr>"
        f'{rows}</table><div class="scroll">{tree_svg(tree, action_names, title)}</div></body></html>'
    )


def _most_visited(tree: SearchTree) -> set[int]:
    """Returns the slots to draw; a node's parent is always among them, as it has more visits and a lower slot."""
    ranked = sorted(tree.nodes, key=lambda node: (-node.visits, node.slot))
    return {node.slot for node in ranked[:MAX_DRAWN]}


def _shown_children(node: Node, shown: set[int]) -> list[Node]:
    return [child for child in node.children if child.slot in shown]


def _place(tree: SearchTree, shown: set[int]) -> dict[int, _Placed]:
    """Places leaves one below the other, and every other node in the middle of its children; without recursion."""
    placed: dict[int, _Placed] = {}
    leaves = 0
    stack: list[tuple[Node, bool]] = [(tree.root, False)]
    while stack:
        node, children_are_placed = stack.pop()
        children = _shown_children(node, shown)
        if children and not children_are_placed:
            stack.append((node, True))
            stack.extend((child, False) for child in reversed(children))
            continue
        if children:
            y = (placed[children[0].slot].y + placed[children[-1].slot].y) / 2
        else:
            y = MARGIN + ROW * (leaves + 0.5)
            leaves += 1
        placed[node.slot] = _Placed(node, MARGIN + COLUMN * node.depth, y)
    return placed


def _edge(parent: _Placed, child: _Placed, total: int, on_line: bool) -> str:
    middle = (parent.x + child.x) / 2
    width = 0.8 + 5 * child.node.visits / total
    kind = ' class="line"' if on_line else ""
    return (
        f'<path{kind} stroke-width="{width:.1f}" d="M{parent.x:.0f} {parent.y:.1f} '
        f'C{middle:.0f} {parent.y:.1f} {middle:.0f} {child.y:.1f} {child.x:.0f} {child.y:.1f}"/>'
    )


def _node(spot: _Placed, tree: SearchTree, action_names: Sequence[str], total: int, on_line: bool) -> str:
    node = spot.node
    radius = 2.5 + 8 * math.sqrt(node.visits / total)
    kind = ' class="line"' if on_line else ""
    name = escape(tree.name_of(node, action_names)) if node.slot else "root"
    q = node.qvalue(tree.discount) if node.slot else node.value
    hover = (
        f"{name}: N {node.visits}, Q {q:.3f}, prior {node.prior:.3f}, reward {node.reward:.3f}, value {node.value:.3f}"
    )
    label = f"{name} N{node.visits} Q{q:.2f}" + (f" P{node.prior:.2f}" if node.slot else "")
    return (
        f'<g><title>{hover}</title><circle{kind} cx="{spot.x:.0f}" cy="{spot.y:.1f}" r="{radius:.1f}"/>'
        f'<text x="{spot.x + radius + 3:.0f}" y="{spot.y + 4:.1f}">{label}</text></g>'
    )
