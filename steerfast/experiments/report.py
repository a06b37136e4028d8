"""A study as one self-contained HTML page: figures, tables, settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from steerfast.experiments.figures import figures

Results = Mapping[str, Any]


class TableRows(NamedTuple):
    """A table of a report: its caption, the head and rows of text."""

    caption: str
    head: list[str]
    rows: list[list[str]]


_TITLES = {
    "broad": "Steering a broad skill: text against code",
    "behaviours": "Steering several behaviours",
    "sparsity": "Steering pruned models",
}


def write_report(results: Results, path: str | Path) -> Path:
    """Render results to HTML, with figures inside. The same results give the same bytes."""
    from jinja2 import Environment

    template = (files("steerfast") / "data" / "report.html.j2").read_text("utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    path = Path(path)
    path.write_text(
        page.render(
            title=_TITLES[results["kind"]],
            model=results["model"],
            code=results["code"],
            figures=figures(results),
            tables=tables(results),
            examples=results.get("examples", []),
            config=json.dumps(results["config"], indent=1, sort_keys=True),
            data=json.dumps(results.get("data", {}), indent=1, sort_keys=True),
        ),
        encoding="utf-8",
    )
    return path


def tables(results: Results) -> list[TableRows]:
    """The tables of a study's report."""
    made = {"broad": _broad, "behaviours": _behaviours, "sparsity": _sparsity}
    return made[results["kind"]](results)


def _broad(results: Results) -> list[TableRows]:
    rows = []
    for line in results["lines"]:
        cells = [
            "-" if cell["text"] is None else f"{cell['text']:.1%} ({cell['coefficient']:.2f})"
            for cell in line["text_kept"]
        ]
        rows.append([line["name"], *cells])
    first = results["lines"][0]["points"][0]
    unsteered = [
        [
            side,
            *(f"{first[side][name]:.4f}" for name in ("top1", "top10", "loss")),
            str(first[side]["tokens"]),
        ]
        for side in ("code", "text")
    ]
    return [
        TableRows(
            "Text accuracy kept (top-1) where code accuracy has fallen to a share of its own; coefficient in brackets. "
            "- : never reached.",
            ["layer", *(f"code {cell['code']:.0%}" for cell in results["lines"][0]["text_kept"])],
            rows,
        ),
        TableRows("Unsteered", ["", "top-1", "top-10", "nats per token", "tokens"], unsteered),
    ]


def _behaviours(results: Results) -> list[TableRows]:
    names = list(results["grid"])
    unsteered = results["test"][0]
    made = [
        TableRows(
            "Unsteered, on the test questions",
            ["", *names],
            [
                ["matching score", *(_cell(unsteered["scores"][name]) for name in names)],
                ["answers", *(_answers(unsteered["scores"][name]) for name in names)],
            ],
        )
    ]
    captions = {
        "individual": "Individual: one vector. Effect on its own behaviour in nats (95% interval), matching score; * mode collapse.",
        "combined": "Combined: all vectors merged into one. Matching scores; * mode collapse.",
        "simultaneous": "Simultaneous: each vector at its own layer. Matching scores; * mode collapse.",
    }
    for scheme, caption in captions.items():
        arms = [arm for arm in results["test"] if arm["scheme"] == scheme]
        if scheme == "individual":
            head = ["vector", "layer", "coefficient", "effect", "matching", "top-1 on text"]
            rows = [
                [
                    arm["behaviour"],
                    str(arm["layer"]),
                    f"{arm['coefficient']:+g}",
                    _interval(arm["scores"][arm["behaviour"]]["effect"]),
                    _cell(arm["scores"][arm["behaviour"]]),
                    _tax(arm),
                ]
                for arm in arms
            ]
        else:
            head = ["", *names, "top-1 on text"]
            rows = [
                [_label(arm), *(_cell(arm["scores"][name]) for name in names), _tax(arm)]
                for arm in arms
            ]
        made.append(TableRows(caption, head, rows))
    flagged = results["config"]["flagged"]
    if flagged:
        remarks = [[where, remark] for where, remark in flagged.items()]
        made.append(TableRows("Remarks on coefficients", ["", ""], remarks))
    return made


def _sparsity(results: Results) -> list[TableRows]:
    rows = [
        [
            model["name"],
            f"{model['zeros']:.1%}",
            f"{model['unsteered']['top1']:.4f}",
            f"{model['unsteered']['loss']:.3f}",
            *(f"{model['cosine'][name]:.3f}" for name in results["config"]["directions"]),
            *(f"{model['slope'][name]:.2f}" for name in results["config"]["directions"]),
        ]
        for model in results["models"]
    ]
    names = results["config"]["directions"]
    head = ["model", "zero weights", "top-1 on text", "nats per token"]
    head += [f"cosine to dense: {name}" for name in names] + [
        f"nats per dose: {name}" for name in names
    ]
    return [TableRows("Dense and pruned copies", head, rows)]


def _label(arm: Results) -> str:
    if arm["scheme"] == "combined":
        sign = "+" if arm["sign"] > 0 else "-"
        return f"layer {arm['layer']}, {arm['reduce']}, {sign}, {arm['weights']}"
    return f"{arm['coefficient']:+g}"


def _cell(score: Results) -> str:
    mark = "*" if score["collapsed"] else ""
    faulty = f" ({score['faulty']} faulty)" if score["faulty"] else ""
    return f"{score['matching']:.3f}{mark}{faulty}"


def _answers(score: Results) -> str:
    return ", ".join(f"{count} {answer}" for answer, count in list(score["counts"].items())[:3])


def _interval(effect: list[float | None]) -> str:
    mean, low, high = effect
    return "not finite" if mean is None else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _tax(arm: Results) -> str:
    return f"{arm['tax']['top1']:.4f}" if arm["tax"] else "-"
