"""Plots of the results, as SVG in docs/benchmarks/: what a steered layer costs, the roofline, what cost depends on.

Each file carries the digest of the figures that it shows, by which a test tells whether it is the results' own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from io import StringIO
from typing import Any

from harness.results import COMMITTED, Line, newest
from tables.peers import steps

FOLDER = COMMITTED.parent.parent / "docs" / "benchmarks"
OURS, OTHERS, QUIET = "#c1272d", "#3b6ea5", "0.6"


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, (data, draw) in CHARTS.items():
        found = data()
        if found:
            (FOLDER / f"{name}.svg").write_text(_stamped(draw(found), found), encoding="utf-8")


def digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _stamped(svg: str, data: Any) -> str:
    return svg.rstrip() + f"\n<!-- figures {digest(data)} -->\n"


def _figure(columns: int, width: float, height: float, **grid: Any) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.hashsalt": "steerfast", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, columns, figsize=(width, height), squeeze=False, layout="constrained", **grid
    )
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    out = StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def _error(figure: Line) -> list[list[float]]:
    middle = figure["median"]
    return [[middle - figure["p20"]], [figure["p80"] - middle]]


# -- what a steered layer adds to a step, by peer ---------------------------------------------------


def peers_data() -> dict[str, dict[str, Line]]:
    """{batch: {peer: microseconds a steered layer}}."""
    found: dict[str, dict[str, Line]] = {}
    for line in steps():
        thin = line["model"] == "thin 7B" and line["operation"] == "add"
        if thin and line["peer"] != "stock":
            found.setdefault(str(line["batch"]), {})[line["peer"]] = line["added_us"]
    return found


def peers_chart(data: dict[str, dict[str, Line]]) -> str:
    figure, axes = _figure(len(data), 3.1 * len(data), 3.0, sharey=True)
    first = next(iter(data.values()))
    names = sorted(first, key=lambda name: -first[name]["median"])
    for axis, (batch, figures) in zip(axes, data.items(), strict=True):
        for place, name in enumerate(names):
            colour = OURS if name.startswith("steerfast") else OTHERS
            time = figures[name]
            axis.errorbar(
                time["median"], place, xerr=_error(time), fmt="o", color=colour, markersize=3.5
            )
        axis.axvline(0, color=QUIET, linewidth=0.8)
        axis.set_xscale("symlog", linthresh=10)
        axis.set_title(f"batch {batch}", fontsize=8)
        axis.set_xlabel("us that a steered layer adds")
    axes[0].set_yticks(range(len(names)), names)
    return _svg(figure)


# -- the fused op and its floor ---------------------------------------------------------------------


def roofline_data() -> dict[str, dict[str, Any]]:
    """{form: {N: op and floor}} of the fused op in bfloat16, and of its in-place twin."""
    found: dict[str, dict[str, Any]] = {}
    for line in newest("roofline", "op", "form", "dtype", "N"):
        if line["dtype"] == "bfloat16" and line["op"] in (
            "steer_add_rms_norm",
            "steer_add_rms_norm_",
        ):
            here = {"op": line["us"]["op"], "floor": line["floor"]}
            form = line["form"] + (", in place" if line["op"].endswith("_") else "")
            found.setdefault(form, {})[str(line["N"])] = here
    return found


def roofline_chart(data: dict[str, dict[str, Any]]) -> str:
    figure, axes = _figure(1, 4.2, 2.9)
    axis = axes[0]
    colours = {"unsteered": OTHERS, "constant": OURS, "8 reads": "#e08e2b"}
    colours["constant, in place"] = "#4d9a5b"
    for form, points in data.items():
        rows = [int(n) for n in points]
        middles = [each["op"]["median"] for each in points.values()]
        axis.plot(rows, middles, "o-", color=colours[form], markersize=3, label=form)
    rows = [int(n) for n in data["constant"]]
    floors = [each["floor"]["median"] for each in data["constant"].values()]
    axis.plot(rows, floors, "--", color=QUIET, label="floor: launch, or a copy of as many bytes")
    axis.set(xscale="log", yscale="log", xlabel="rows N (D = 4096, bfloat16)", ylabel="us")
    axis.legend(frameon=False, fontsize=7)
    return _svg(figure)


# -- cost against one quantity at a time ------------------------------------------------------------

PANELS = ("constant vectors K", "reads", "distinct plans", "layers steered", "depth")


def scale_data() -> dict[str, dict[str, Line]]:
    lines = newest("scale", "bench", "quantity")
    found = {line["quantity"]: line["us"] for line in lines if "fit" in line}
    return {name: found[name] for name in (*PANELS, "depth, stock") if name in found}


def scale_chart(data: dict[str, dict[str, Line]]) -> str:
    shown = [name for name in PANELS if name in data]
    figure, axes = _figure(len(shown), 2.1 * len(shown), 2.2)
    for axis, name in zip(axes, shown, strict=True):
        for series, colour in ((name, OURS), (f"{name}, stock", QUIET)):
            for value, time in data.get(series, {}).items():
                axis.errorbar(
                    float(value),
                    time["median"],
                    yerr=_error(time),
                    fmt="o",
                    color=colour,
                    markersize=3,
                )
        axis.set_ylim(0, 1.15 * axis.get_ylim()[1])
        axis.set_xlabel(name)
    axes[0].set_ylabel("us")
    return _svg(figure)


CHARTS: dict[str, tuple[Callable[[], Any], Callable[[Any], str]]] = {
    "peers": (peers_data, peers_chart),
    "roofline": (roofline_data, roofline_chart),
    "scale": (scale_data, scale_chart),
}
