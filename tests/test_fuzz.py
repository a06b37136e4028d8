"""A short piece of the fuzz (``python tests/fuzz.py``), and that it finds faults that are planted one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import fuzz_plans
import pytest

from steerfast.ops.records import GateKind
from steerfast.plans import selectors
from steerfast.plans.condition import Condition
from steerfast.routing.routing import Routing
from steerfast.table import lowering, programs

pytestmark = pytest.mark.filterwarnings("ignore:the plan adds:UserWarning")
TRIALS, SEED = 200, 1
routing = import_module("steerfast.routing.routing")
itinerary = import_module(
    "steerfast.routing.itinerary"
)  # whose package has a function of that name


def test_nothing_is_found():
    summary = fuzz_plans.plans(float("inf"), SEED, TRIALS)
    assert summary["found"] == []
    assert set(summary["by_kind"]) == set(fuzz_plans.KINDS)
    assert summary["refused"]["refusals"] == summary["by_kind"]["refusals"]
    assert sum(summary["refused"].values()) < TRIALS / 3, "what is refused tests nothing else"
    near = summary["positions"].get("near a threshold", 0)
    assert near < summary["positions"]["sure"] / 100


def after(module, name, change):
    """Plant: what a function returns, changed."""

    def plant(patch):
        original = getattr(module, name)
        patch.setattr(module, name, lambda *args, **more: change(original(*args, **more)))

    return plant


def before(owner, name, change):
    """Plant: the arguments of a function, changed."""

    def plant(patch):
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *args: original(*change(*args)))

    return plant


def instead(owner, name, value):
    return lambda patch: patch.setattr(owner, name, value, raising=False)


def stronger(operator):
    """A hundredth more of one operator: of its coefficient, target or angle."""
    dial = {"clamp": "target", "floor": "target", "ceiling": "target", "feature_clamp": "target"}
    dial |= {"rotate_to": "angle", "rotate_by": "angle"}
    field = dial.get(operator, "coefficient")

    def change(build, term, layer, gate):
        if term.operator == operator:
            term = replace(term, **{field: 1.01 * getattr(term, field)})
        return build, term, layer, gate

    return before(programs, "_lower", change)


def of_gate(kind):
    """The bias, or threshold, of one kind of gate is left out."""

    def change(read):
        return replace(read, bias=0.0) if read.gate == kind else read

    return after(programs._Program, "gate", change)


def shifted(span):
    first, last = span
    return first._replace(offset=first.offset + 1), last


FAULTS = {
    "positions of a forward": after(
        routing, "positions_of", lambda found: (found[0] + 1, found[1])
    ),
    "positions of a step": before(
        Routing, "decode_step", lambda self, first, length: (self, first + 1, length)
    ),
    "positions in a packed row": after(
        routing,
        "packed_sequences",
        lambda found: found and found._replace(positions=found.positions + 1),
    ),
    "rows of a step that was taken back": instead(
        Routing, "_settles_at", property(lambda self: 0, lambda self, value: None)
    ),
    "where after_prompt begins": lambda patch: patch.setitem(
        selectors._SPANS, "after_prompt", shifted(selectors._SPANS["after_prompt"])
    ),
    "where a sequence ends": after(itinerary, "final_token", lambda at: at + 1),
    "a schedule": after(
        itinerary,
        "itinerary",
        lambda one: one._replace(gain_at=tuple(at + 1 for at in one.gain_at)),
    ),
    "the layers above a condition": instead(
        Condition, "steers_above", property(lambda self: self.decided_at)
    ),
    "a scale": after(lowering, "mean_norms", lambda found: lambda site: 1.01 * found(site)),
    "a finish": lambda patch: patch.setitem(lowering.FINISH_CODES, "shrink", 0),
    "a subspace": instead(
        programs, "_basis", lambda members: [term.unit(layer) for term, layer in members]
    ),
    "add_relative": before(
        programs, "_sum", lambda parts: ([(1.01 * factor, v) for factor, v in parts],)
    ),
    "hard gates": of_gate(GateKind.HARD),
    "cosine gates": of_gate(GateKind.COSINE),
    "sigmoid gates": of_gate(GateKind.SIGMOID),
    "a refusal": before(
        Routing, "_measure_ahead", lambda self, across, seen: (self, across and not seen, seen)
    ),
}
LOWERED = ["signed", "clamp", "floor", "ceiling", "reflect", "map", "feature_clamp"]
LOWERED += ["rotate_to", "rotate_by", "slerp"]
FAULTS |= {operator: stronger(operator) for operator in LOWERED}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault, monkeypatch):
    """Within as many trials as run here without it."""
    FAULTS[fault](monkeypatch)
    fuzz_plans.bench.cache_clear()  # tables keep what was lowered
    try:
        for one in fuzz_plans.trials(SEED):
            if one.wrong:
                assert "Wrong" in one.wrong, one.wrong
                break
            assert one.number < TRIALS, "not found"
    finally:
        fuzz_plans.bench.cache_clear()


def test_the_command_replays_a_trial_and_writes_its_summary(tmp_path):
    script = Path(__file__).parent / "fuzz.py"
    out = tmp_path / "summary.json"
    command = [sys.executable, script, "--seed", str(SEED), "--trial", "5", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(out.read_text())
    assert json.loads(done.stdout) == summary
    assert summary["plans"]["trials"] == 1
    assert summary["plans"]["by_kind"] == {fuzz_plans.trial(SEED, 5).kind: 1}
