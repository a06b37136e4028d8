"""The figures of the studies, as SVG text; drawn as the paper draws them, where it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

Results = Mapping[str, Any]
_CONTROL = "0.55"


def figures(results: Results) -> dict[str, str]:
    """{caption: SVG} of a study's results, in the order of the report. Raises ValueError for an unknown kind."""
    drawn = {"behaviours": _behaviours, "broad": _broad, "sparsity": _sparsity}
    if results["kind"] not in drawn:
        raise ValueError(
            f"no figures for a study of {results['kind']!r}; known: {', '.join(drawn)}"
        )
    return drawn[results["kind"]](results)


def _broad(results: Results) -> dict[str, str]:
    return {
        "What is left of next-token accuracy (top-1, relative to no steering) on code and on text. Steering starts at "
        "the top right; the further a line stays above the diagonal, the more selective it is.": _trade_off(
            results
        ),
        "Top-1 accuracy against the coefficient: code solid, text dashed.": _accuracies(results),
    }


def _behaviours(results: Results) -> dict[str, str]:
    return {
        "Grid search on the validation questions: effect of each behaviour's own vector on the log-odds of the matching "
        "answer, a line per layer. Hollow: points that end a layer's sweep.": _grid(results),
        "Single vectors with their chosen coefficients, on the test questions: effect on the log-odds of their own behaviour, with 95% "
        "intervals.": _individual(results),
        "All vectors at once, each at its own layer, under one coefficient: matching scores, and top-1 accuracy on text "
        "(black). Hollow: one answer to more than 95% of the questions.": _simultaneous(results),
        "Cosines between the vectors, at the middle layer of the simultaneous scheme.": _cosines(
            results
        ),
        "Interaction of pairs: effect together minus the sum of the effects alone, in nats, on each behaviour's questions; a dot "
        "where the 95% interval excludes 0.": _interactions(results),
    }


def _sparsity(results: Results) -> dict[str, str]:
    return {
        "Effect of the same steering on the dense model and on pruned copies, each with its own vector: nats per pair "
        "against the coefficient.": _doses(results),
        "Alignment tax: top-1 accuracy on text that steering costs, against the coefficient.": _taxes(
            results
        ),
    }


def _panels(count: int, width: float = 3.0, height: float = 2.8) -> tuple[Any, Sequence[Any]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, count, figsize=(width * count, height), constrained_layout=True, squeeze=False
    )
    for panel in panels[0]:
        panel.tick_params(labelsize=7)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    return figure, panels[0]


def _svg(figure: Any) -> str:
    """Without a date or random ids: the same results give the same file."""
    import matplotlib
    from matplotlib import pyplot

    text = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "steerfast"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    return text.getvalue()[text.getvalue().index("<svg") :]


def _shades(count: int) -> list[Any]:
    """Early layers dark, late ones light."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * index / max(count - 1, 1)) for index in range(count)]


def _styled(lines: Sequence[Results]) -> list[tuple[Results, dict[str, Any]]]:
    """Each line with its look: sets of layers by depth, controls grey."""
    single = [line for line in lines if "permuted" not in line["name"]]
    shades = dict(zip((line["name"] for line in single), _shades(len(single)), strict=True))
    looks = []
    for line in lines:
        if line["name"] in shades:
            marks = {"color": shades[line["name"]], "linestyle": "-"}
        else:
            marks = {"color": _CONTROL, "linestyle": ":" if "norm" in line["name"] else "--"}
        looks.append((line, {**marks, "linewidth": 1.2, "marker": "o", "markersize": 2}))
    return looks


def _trade_off(results: Results) -> str:
    figure, (panel,) = _panels(1, 5.2, 4.2)
    panel.plot([0, 1], [0, 1], color="0.85", linewidth=0.8)
    for line, look in _styled(results["lines"]):
        first = line["points"][0]
        kept = [
            [point[side]["top1"] / first[side]["top1"] for point in line["points"]]
            for side in ("code", "text")
        ]
        panel.plot(*kept, label=line["name"], **look)
    panel.set_xlabel("code accuracy kept", fontsize=8)
    panel.set_ylabel("text accuracy kept", fontsize=8)
    panel.legend(fontsize=7, frameon=False, title="layer", title_fontsize=7)
    return _svg(figure)


def _accuracies(results: Results) -> str:
    figure, panels = _panels(len(results["lines"]), 1.9, 2.2)
    for panel, (line, look) in zip(panels, _styled(results["lines"]), strict=True):
        doses = [point["coefficient"] for point in line["points"]]
        for side, style in (("code", "-"), ("text", "--")):
            values = [point[side]["top1"] for point in line["points"]]
            panel.plot(doses, values, **{**look, "linestyle": style})
        panel.set_title(line["name"], fontsize=7)
        panel.set_ylim(0)
    panels[0].set_ylabel("top-1 accuracy", fontsize=8)
    return _svg(figure)


def _grid(results: Results) -> str:
    figure, panels = _panels(len(results["grid"]))
    layers = results["config"]["layers"]
    for panel, (name, points) in zip(panels, results["grid"].items(), strict=True):
        panel.axhline(0.0, color="0.85", linewidth=0.8)
        for layer, shade in zip(layers, _shades(len(layers)), strict=True):
            here = [point for point in points if point["layer"] == layer]
            here = [point for point in here if point["effect"] is not None]
            here.sort(key=lambda point: point["coefficient"])
            doses = [point["coefficient"] for point in here]
            values = [point["effect"] for point in here]
            panel.plot(doses, values, color=shade, linewidth=1, label=str(layer))
            for dose, value, point in zip(doses, values, here, strict=True):
                fill = shade if point["usable"] else "white"
                panel.plot([dose], [value], "o", markersize=3, color=shade, markerfacecolor=fill)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("coefficient", fontsize=7)
    panels[0].set_ylabel("effect, nats", fontsize=8)
    panels[0].legend(fontsize=6, frameon=False, title="layer", title_fontsize=6)
    return _svg(figure)


def _individual(results: Results) -> str:
    arms = [arm for arm in results["test"] if arm["scheme"] == "individual"]
    names = list(results["grid"])
    figure, panels = _panels(len(names), 2.6, 2.6)
    for panel, name in zip(panels, names, strict=True):
        here = [arm for arm in arms if arm["behaviour"] == name]
        panel.axhline(0.0, color="0.85", linewidth=0.8)
        for place, arm in enumerate(here):
            mean, low, high = arm["scores"][name]["effect"]
            if mean is None:
                continue
            colour = "#0b6e99" if arm["coefficient"] > 0 else "#b5523b"
            error = [[mean - low], [high - mean]]
            panel.bar([place], [mean], color=colour, width=0.7)
            panel.errorbar([place], [mean], yerr=error, color="0.2", linewidth=1, capsize=2)
        panel.set_xticks(
            range(len(here)),
            [f"{arm['coefficient']:+g}\n@{arm['layer']}" for arm in here],
            fontsize=6,
        )
        panel.set_title(name, fontsize=9)
    panels[0].set_ylabel("effect, nats", fontsize=8)
    return _svg(figure)


def _simultaneous(results: Results) -> str:
    arms = [arm for arm in results["test"] if arm["scheme"] == "simultaneous"]
    figure, (panel,) = _panels(1, 6.4, 3.6)
    doses = [arm["coefficient"] for arm in arms]
    names = list(results["grid"])
    from matplotlib import colormaps

    for index, name in enumerate(names):
        colour = colormaps["tab10"](index)
        scores = [arm["scores"][name] for arm in arms]
        panel.plot(doses, [score["matching"] for score in scores], color=colour, label=name)
        for dose, score in zip(doses, scores, strict=True):
            fill = "white" if score["collapsed"] else colour
            panel.plot(
                [dose], [score["matching"]], "o", markersize=3, color=colour, markerfacecolor=fill
            )
    if all(arm["tax"] for arm in arms):
        taxes = [arm["tax"]["top1"] for arm in arms]
        panel.plot(doses, taxes, color="black", linewidth=1.6, label="top-1 on text")
    panel.set_ylim(0, 1)
    panel.set_xlabel("global coefficient", fontsize=8)
    panel.set_ylabel("matching score", fontsize=8)
    panel.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _svg(figure)


def _heat(panel: Any, values: Sequence[Sequence[float]], limit: float) -> None:
    panel.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6)


def _cosines(results: Results) -> str:
    names = list(results["norms"])
    places = sorted(results["config"]["simultaneous"].values())
    values = results["cosines"][str(places[len(places) // 2])]
    figure, (panel,) = _panels(1, 4.4, 3.4)
    _heat(panel, values, 1.0)
    panel.set_xticks(range(len(names)), names, fontsize=6, rotation=30, ha="right")
    panel.set_yticks(range(len(names)), names, fontsize=6)
    return _svg(figure)


def _interactions(results: Results) -> str:
    rows = results["interactions"]
    doses = sorted({row["coefficient"] for row in rows})
    names = list(results["grid"])
    pairs = [row["pair"] for row in rows if row["coefficient"] == doses[0]][:: len(names)]
    figure, panels = _panels(len(doses), 4.6, 3.6)
    found = {
        (tuple(row["pair"]), row["coefficient"], row["questions"]): row["nats"] for row in rows
    }
    limit = max(abs(row["nats"][0] or 0.0) for row in rows) or 1.0
    for panel, dose in zip(panels, doses, strict=True):
        cells = [[found[tuple(pair), dose, name] for name in names] for pair in pairs]
        _heat(panel, [[cell[0] or 0.0 for cell in line] for line in cells], limit)
        for row, line in enumerate(cells):
            for column, (mean, low, high) in enumerate(line):
                if mean is not None and (low > 0 or high < 0):
                    panel.plot([column + 0.38], [row], ".", color="black", markersize=3)
        panel.set_title(f"coefficient {dose:+g}", fontsize=8)
        panel.set_xticks(range(len(names)), names, fontsize=6, rotation=30, ha="right")
        panel.set_yticks(range(len(pairs)), [" + ".join(pair) for pair in pairs], fontsize=6)
    return _svg(figure)


def _doses(results: Results) -> str:
    return _by_model(results, "effect", "effect, nats")


def _taxes(results: Results) -> str:
    return _by_model(results, "tax", "top-1 lost")


def _by_model(results: Results, what: str, label: str) -> str:
    names = results["config"]["directions"]
    figure, panels = _panels(len(names), 3.6, 3.0)
    models = results["models"]
    for panel, name in zip(panels, names, strict=True):
        panel.axhline(0.0, color="0.85", linewidth=0.8)
        for model, shade in zip(models, _shades(len(models)), strict=True):
            points = [
                point
                for point in model["points"]
                if point["direction"] == name and point["vector"] == "own"
            ]
            doses = [point["coefficient"] for point in points]
            style = "--" if model["pattern"] == "of 4" else "-"
            panel.plot(
                doses,
                [point[what] for point in points],
                style,
                marker="o",
                markersize=3,
                color=shade,
                label=model["name"],
            )
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("coefficient (stream norms)", fontsize=7)
    panels[0].set_ylabel(label, fontsize=8)
    panels[-1].legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _svg(figure)
