"""The scoring code, given the paper's stored responses, gives the paper's tables."""

from __future__ import annotations

import json
import re

import paper_tables
import pytest

from steerfast.experiments import answers, choice, questions
from steerfast.experiments.answers import Score

BEHAVIOURS = questions.PAPER_ORDER


@pytest.fixture(scope="module")
def split(paper_data):
    every = {name: questions.load(paper_data / "datasets", name) for name in BEHAVIOURS}
    return questions.splits(every, 500, 200)


@pytest.fixture(scope="module")
def stored(paper_data):
    """The results of one of the paper's files."""
    return lambda file: json.loads((paper_data / "results" / file).read_text())


def scored(cell, asked):
    """The stored responses, scored by us; the stored counts are only compared."""
    allowed = (asked[0].matching, asked[0].other)
    score = answers.score(cell["responses"], [one.matching for one in asked], allowed)
    assert (score.total, score.matches, score.faulty) == tuple(
        cell[name] for name in ("total", "matches", "faulty")
    )
    return score


def rows(table):
    """The cells of a table, below its header."""
    lines = [line.strip().strip("|").split("|") for line in table.strip().splitlines()[1:]]
    return [[cell.strip() for cell in line] for line in lines]


def check(cell, score: Score, count=False):
    """A cell of a table against a score: number, collapse and faulty answers."""
    if cell == "F":
        assert score.faulty == score.total
        return
    number = re.match(r"[.\d]+", cell)
    if number is None:  # f200: all of them, and nothing else to say
        assert cell == f"f{score.faulty}"
        assert score.matches == 0
        return
    if count:
        assert score.matches == int(number[0])
    else:
        assert f"{score.matching:.3f}".lstrip("0") == number[0]
    assert score.collapsed == ("*" in cell)
    faulty = re.search(r"f(\d+)|\((\d+) faulty", cell)
    if faulty or count:
        assert score.faulty == (int(faulty[1] or faulty[2]) if faulty else 0)


def test_individual(split, stored):
    table, results = (
        rows(paper_tables.INDIVIDUAL),
        stored("multiple_steering_results_on_test_v1.0.json"),
    )
    for name, *cells in table:
        found = []
        for layer in ("layer_10", "layer_15"):
            coefficients = results["meta"]["ics"][name][layer]
            for c in coefficients:
                found.append(scored(results[layer][name][f"m_{c}"], split[name].test))
        assert found[0] == found[3]  # c = 0, stored with each layer
        for cell, score in zip(cells, found[:3] + found[4:], strict=True):
            check(cell, score)
    assert len(table) == 5


def test_combined(split, stored):
    results = {
        "sum": stored("sum_combined_steering_results_v1.4.json"),
        "mean": stored("mean_combined_steering_results_v1.3.json"),
    }
    variants = {"unweighted": "avg", "weighted": "weighted"}
    table = rows(paper_tables.COMBINED)
    for label, *cells in table:
        layer, reduce, sign, kind = label.split()
        row = results[reduce][f"layer_{layer}"][f"{sign}_{variants[kind]}_acts"]
        for name, cell in zip(BEHAVIOURS, cells, strict=True):
            check(cell, scored(row[name], split[name].test))
    assert len(table) == 16


def test_simultaneous(stored):
    """The file holds how often each answer was given, not the responses."""
    results = stored("simultaneous_steering_v1.2.json")
    by_scalar = {
        round(float(key.split("_")[1]), 2): row for key, row in results.items() if key != "meta"
    }
    for c, *cells in rows(paper_tables.SIMULTANEOUS):
        for name, cell in zip(BEHAVIOURS, cells, strict=True):
            check(cell, counted(by_scalar[float(c)][name]))

    free = [
        c
        for c, row in by_scalar.items()
        if not any(counted(row[name]).collapsed for name in BEHAVIOURS)
    ]
    assert [c for c in free if -1.9 < c <= 1.6] == [
        c for c in sorted(by_scalar) if -0.45 <= c <= 1.05
    ]
    assert len(by_scalar) == 81


def counted(cell):
    return Score(cell["total"], cell["matches"], cell["faulty"], cell["response_dist"])


@pytest.fixture(scope="module")
def grid(split, stored):
    """{behaviour: [GridPoint]} of both grid searches."""
    points = {name: [] for name in BEHAVIOURS}
    for sign, file in ((1, "_positive_ic_v1.4"), (-1, "_negative_ic_v1.5")):
        for name, layers in stored(f"multiple_steering_results_{file}.json").items():
            for layer, cells in layers.items() if name != "meta" else ():
                if layer == "default":
                    both = split[name].validation + split[name].test
                    scored(cells, both)
                    continue
                for key, cell in cells.items():
                    c = sign * abs(float(key.split("_")[1]))
                    score = scored(cell, split[name].validation)
                    points[name].append(
                        choice.GridPoint(int(layer.split("_")[1]), c, score, not score.ends_sweep())
                    )
    return points


def test_grid(grid, split, stored):
    short = {"wealth": "wealth_seeking"}
    names = {
        "+1": 1,
        "+2": 2,
        "+3": 3,
        "+5": 5,
        "+10": 10,
        "-1": -1,
        "-2": -2,
        "-3": -3,
        "-5": -5,
        "-10": -10,
    }
    name, seen = "", 0
    for label, layer, *cells in rows(paper_tables.GRID):
        if label:
            name, unsteered = re.fullmatch(r"(\w+) \((\d+)\)", label).groups()
            name = short.get(name, name)
            default = stored("multiple_steering_results__positive_ic_v1.4.json")[name]["default"]
            first = {**default, "responses": default["responses"][:200]}
            asked = split[name].validation
            allowed = (asked[0].matching, asked[0].other)
            plain = answers.score(first["responses"], [q.matching for q in asked], allowed)
            assert plain.matches == int(unsteered)
        here = {p.coefficient: p.score for p in grid[name] if p.layer == int(layer)}
        for c, cell in zip(names.values(), cells, strict=True):
            if cell:
                check(cell, here[c], count=True)
                seen += 1
            else:
                assert c not in here, "the sweep had ended"
    assert seen > 70


def test_a_layers_sweep_ends_where_the_stop_rule_says(grid):
    """Every point but the last of a layer and sign lets the sweep go on, and the last ends it."""
    ended = 0
    for points in grid.values():
        for layer in {point.layer for point in points}:
            for sign in (-1, 1):
                here = [p for p in points if p.layer == layer and p.coefficient * sign > 0]
                here.sort(key=lambda point: abs(point.coefficient))
                assert all(point.usable for point in here[:-1])
                ended += not here[-1].usable
    assert ended > 70


def test_chosen_coefficients(grid, stored):
    """Our rule finds the authors' choice, but for what they tried by hand, one trap and two matters of taste."""
    found = choice.chosen(grid, (10, 15))
    theirs = stored("multiple_steering_results_on_test_v1.0.json")["meta"]["ics"]
    differences = {
        (name, layer, sign): (found[name][layer][sign], theirs[name][f"layer_{layer}"][column])
        for name in BEHAVIOURS
        for layer in (10, 15)
        for column, sign in ((1, -1), (2, 1))
        if found[name][layer][sign] != theirs[name][f"layer_{layer}"][column]
    }
    assert differences == {
        # 0.5 was tried by hand at these layers, and is in no file.
        ("agreeableness", 10, 1): (1, 0.5),
        ("agreeableness", 15, 1): (1, 0.5),
        ("anti_immigration", 15, -1): (-1, -0.5),
        ("anti_immigration", 15, 1): (2, 1),  # 80 matches; theirs has 75
        ("sycophancy", 15, -1): (
            -20,
            -5,
        ),  # 119 and 120 matches, of 121 unsteered: neither does anything
        ("myopic", 10, 1): (5, 10),  # +10 is mode collapse: all 300 test answers are "B"
    }
