"""The picture of docs/design.md: the stages of the package, read from their imports and their first lines.

    python docs/pictures/stages.py          write stages.svg anew

A stage stands one row above the highest stage that it imports. An arrow that follows from two others is left out; one that
skips a row runs beside the boxes.
"""

from __future__ import annotations

import ast
import textwrap
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "steerfast"
PICTURE = HERE / "stages.svg"
WIDTH, BOX_HEIGHT, GAP, MARGIN = 880, 74, 34, 20
LANE = 16  # beside the boxes, for arrows that skip a row
LEFT_OUT = {"errors", "kernels", "data"}  # used by all, or no stage of its own
Graph = dict[str, set[str]]


def stages() -> dict[str, str]:
    """Every folder of the package that is a stage, with the first sentence of its ``__init__``."""
    found = {}
    for door in sorted(PACKAGE.glob("*/__init__.py")):
        if door.parent.name not in LEFT_OUT:
            doc = ast.get_docstring(ast.parse(door.read_text(encoding="utf-8"))) or ""
            found[door.parent.name] = doc.splitlines()[0].rstrip(".")
    return found


def imports(names: set[str]) -> Graph:
    """Which stage imports which, anywhere in its files."""
    graph: Graph = {name: set() for name in names}
    for name in names:
        for path in (PACKAGE / name).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    whole = [f"{node.module}.{alias.name}" for alias in node.names]
                elif isinstance(node, ast.Import):
                    whole = [alias.name for alias in node.names]
                else:
                    continue
                parts = [one.split(".") for one in whole]
                graph[name] |= {part[1] for part in parts if part[0] == "steerfast" and part[1:]}
        graph[name] = (graph[name] & names) - {name}
    return graph


def ranks(graph: Graph) -> dict[str, int]:
    """0 for a stage that imports none, else one more than the highest that it imports."""
    known: dict[str, int] = {}

    def rank(name: str) -> int:
        if name not in known:
            known[name] = 1 + max((rank(below) for below in graph[name]), default=-1)
        return known[name]

    return {name: rank(name) for name in sorted(graph)}


def reduced(graph: Graph) -> Graph:
    """Without the arrows that follow from others."""

    def reaches(name: str) -> set[str]:
        return graph[name].union(*(reaches(below) for below in graph[name]))

    return {
        name: {one for one in below if not any(one in reaches(other) for other in below)}
        for name, below in graph.items()
    }


def draw() -> str:
    """The SVG, with its own background, so that it reads on light and dark pages."""
    texts = stages()
    graph = imports(set(texts))
    rank = ranks(graph)
    rows = [sorted(n for n in rank if rank[n] == r) for r in range(max(rank.values()) + 1)]
    few = reduced(graph)
    far = {
        end
        for name, below in few.items()
        for one in below
        if rank[name] - rank[one] > 1
        for end in (name, one)
    }
    rows = [sorted(row, key=lambda name: (name in far, name)) for row in rows]  # next to the lane
    height = len(rows) * (BOX_HEIGHT + GAP) - GAP + 2 * MARGIN
    place = {}
    for level, row in enumerate(reversed(rows)):
        whole = WIDTH - 2 * MARGIN - LANE
        width = min(400, (whole - GAP * (len(row) - 1)) / len(row))
        left = MARGIN + (whole - len(row) * width - GAP * (len(row) - 1)) / 2
        for number, name in enumerate(row):
            at = left + number * (width + GAP)
            place[name] = (at, MARGIN + level * (BOX_HEIGHT + GAP), width)
    arrows = [
        (_arrow if rank[name] - rank[one] == 1 else _around)(place[name], place[one])
        for name, below in sorted(few.items())
        for one in sorted(below)
    ]
    boxes = [_box(name, texts[name], place[name]) for name in sorted(texts)]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="The stages of steerfast and what each imports" font-family="sans-serif">\n'
        '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#56697a"/></marker></defs>\n'
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#f7f9fb"/>\n'
    )
    return head + "\n".join(arrows + boxes) + "\n</svg>\n"


def _box(name: str, text: str, place: tuple[float, float, float]) -> str:
    left, top, width = place
    lines = textwrap.wrap(text, int(width / 7.2))[:2]
    said = "".join(
        f'<text x="{left + width / 2:.0f}" y="{top + 43 + 17 * number:.0f}" font-size="13" '
        f'text-anchor="middle" fill="#3b4a57">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{width:.0f}" height="{BOX_HEIGHT}" rx="8" '
        'fill="#ffffff" stroke="#0b6e99" stroke-width="1.5"/>'
        f'<text x="{left + width / 2:.0f}" y="{top + 23:.0f}" font-size="16" font-weight="bold" '
        f'text-anchor="middle" fill="#0b4f6c">{escape(name)}/</text>{said}'
    )


def _arrow(above: tuple[float, float, float], below: tuple[float, float, float]) -> str:
    start = above[0] + above[2] / 2, above[1] + BOX_HEIGHT
    end = below[0] + below[2] / 2, below[1]
    return (
        f'<line x1="{start[0]:.0f}" y1="{start[1]:.0f}" x2="{end[0]:.0f}" y2="{end[1]:.0f}" '
        'stroke="#56697a" stroke-width="1.5" marker-end="url(#head)"/>'
    )


def _around(above: tuple[float, float, float], below: tuple[float, float, float]) -> str:
    start = above[0] + above[2], above[1] + BOX_HEIGHT / 2
    end = below[0] + below[2], below[1] + BOX_HEIGHT / 2
    return (
        f'<polyline points="{start[0]:.0f},{start[1]:.0f} {WIDTH - LANE},{start[1]:.0f} '
        f'{WIDTH - LANE},{end[1]:.0f} {end[0] + 2:.0f},{end[1]:.0f}" fill="none" '
        'stroke="#56697a" stroke-width="1.5" marker-end="url(#head)"/>'
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
