"""README's picture, steering.svg, from steering.json (which measure.py makes).

    python docs/pictures/draw.py

Text stays text, in 13 units of a picture 400 wide, so that a phone shows it at a readable size; colours follow the
reader's light or dark scheme, on a ground of the picture's own.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
WIDTH, SHOWN = 400, 600  # units across, and pixels where there is room
MARGIN, LINE = 14, 18
CHARACTERS = 54  # of a line: as many as fit the width in a wide letter
LINES = 3  # of a text, before it is cut

# name: (light, dark); lines in the order in which directions are drawn
SHADES = {
    "ground": ("#ffffff", "#0d1117"),
    "frame": ("#d1d9e0", "#3d444d"),
    "ink": ("#1f2328", "#f0f6fc"),
    "faint": ("#59636e", "#9198a1"),
    "below": ("#a4133c", "#ff8fa3"),
    "above": ("#0b6e4f", "#5fd3a2"),
    "curve0": ("#0969da", "#79b8ff"),
    "curve1": ("#9a6700", "#e3b341"),
    "curve2": ("#8250df", "#c8a5ff"),
    "curve3": ("#bf3989", "#ff9bce"),
    "curve4": ("#0b6e4f", "#5fd3a2"),
}


def text(x: float, y: float, words: str, shade: str = "ink", extra: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{shade}"{extra}>{escape(words)}</text>'


def style() -> str:
    def rules(column: int) -> str:
        return " ".join(
            f".{name} {{ fill: {shade[column]} }} .{name}-line {{ stroke: {shade[column]} }}"
            for name, shade in SHADES.items()
        )

    return (
        "<style>\n"
        'text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }\n'
        ".strong { font-weight: 600 } polyline, line { fill: none; stroke-width: 2 } .thin { stroke-width: 1 }\n"
        f"{rules(0)}\n@media (prefers-color-scheme: dark) {{ {rules(1)} }}\n</style>"
    )


def answers(data: Mapping[str, Any], top: float) -> tuple[list[str], float]:
    """The prompt and its continuations; returns the marks and where they end."""
    marks = [text(MARGIN, top, data["prompt"], "ink strong")]
    y = top + LINE + 8
    for dose, answer in data["generations"]:
        shade = "faint" if not dose else "below" if dose < 0 else "above"
        label = f"{data['direction']} {signed(dose)}" if dose else "unsteered"
        words = " ".join(answer.split())
        words += "" if words[-1] in ".!?" else " …"  # the tokens ran out
        wrapped = textwrap.wrap(words, CHARACTERS, max_lines=LINES, placeholder=" …")
        marks.append(text(MARGIN + 10, y, label, f"{shade} strong"))
        marks += [
            text(MARGIN + 10, y + LINE * number, line)
            for number, line in enumerate(wrapped, start=1)
        ]
        end = y + LINE * len(wrapped) + 5
        marks.append(
            f'<line x1="{MARGIN}" x2="{MARGIN}" y1="{y - 12:g}" y2="{end:g}" class="{shade}-line"/>'
        )
        y = end + LINE + 6
    return marks, y


def curves(data: Mapping[str, Any], top: float) -> tuple[list[str], float]:
    """Effect against dose, a line a direction and its name at the end; random directions in grey."""
    responses: Mapping[str, Sequence[Sequence[float]]] = data["dose_response"]
    left, right, height = MARGIN + 34, 308, 190
    doses = [point[0] for points in responses.values() for point in points]
    effects = [v for points in responses.values() for point in points for v in point[1:]]
    low, high = 5 * (min(effects) // 5), -5 * (-max(effects) // 5)
    across = (right - left) / (max(doses) - min(doses))
    up = height / (high - low)

    def at(dose: float, effect: float) -> tuple[float, float]:
        return left + (dose - min(doses)) * across, top + 30 + (high - effect) * up

    marks = [text(MARGIN, top, "Preference for the positive text, in nats", "ink strong")]
    for level in (low, 0.0, high):
        y = at(0, level)[1]
        marks.append(
            f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" class="frame-line thin"/>'
        )
        marks.append(text(left - 6, y + 4, signed(level, 0), "faint", ' text-anchor="end"'))
    for dose in sorted({min(doses), 0.0, max(doses)}):
        x, y = at(dose, low)
        marks.append(text(x, y + 20, signed(dose, 1), "faint", ' text-anchor="middle"'))
    ends = []
    for number, (name, points) in enumerate(responses.items()):
        for column, look in ((2, "faint-line thin"), (1, f"curve{number}-line")):
            spots = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(p[0], p[column]) for p in points))
            dashes = ' stroke-dasharray="2 4"' if column == 2 else ""
            marks.append(f'<polyline points="{spots}" class="{look}"{dashes}/>')
        ends.append((at(*points[-1][:2])[1], name, f"curve{number} strong"))
    control = sum(points[-1][2] for points in responses.values()) / len(responses)
    ends.append((at(0, control)[1], "random", "faint"))
    marks += [
        text(right + 6, y + 4, name, look)
        for y, (_, name, look) in zip(
            apart(sorted(end[0] for end in ends)), sorted(ends), strict=True
        )
    ]
    bottom = top + 30 + height + 38
    marks.append(text(left, bottom, "dose, in norms of the stream", "faint"))
    return marks, bottom


def apart(heights: Sequence[float], least: float = 16.0) -> list[float]:
    """Ascending heights, moved downwards where neighbours are too close, then all back by half of the excess."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + least) if placed else height)
    excess = sum(after - before for before, after in zip(heights, placed, strict=True))
    return [height - excess / len(placed) for height in placed]


def signed(value: float, digits: int = 2) -> str:
    """With a sign of its own, a true minus; 0 has none."""
    return f"{value:+.{digits}f}".replace("-", "−") if value else "0"


def draw(data: Mapping[str, Any]) -> str:
    """The picture, as SVG."""
    heading = f"{data['model']}, layer {data['layer']} steered"
    shown, y = answers(data, 52)
    plotted, bottom = curves(data, y + 14)
    height = round(bottom + MARGIN)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{SHOWN}" '
            f'height="{round(height * SHOWN / WIDTH)}" role="img">',
            f"<title>{escape(heading)}</title>",
            style(),
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" class="ground frame-line"/>',
            text(MARGIN, 26, heading, "faint"),
            *shown,
            *plotted,
            "</svg>\n",
        ]
    )


def main() -> None:
    data = json.loads((FOLDER / "steering.json").read_text(encoding="utf-8"))
    (FOLDER / "steering.svg").write_text(draw(data), encoding="utf-8")


if __name__ == "__main__":
    main()
