"""Plans as JSON: the one schema of the command line, of files and of requests.

A term's ``vector`` is an object (the values themselves, base64 float32: the plan is self-contained) or
a string that the reader resolves: a name given by the caller, or a path beside the plan's file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from os.path import isfile  # False for a name that no file can have, where Path.is_file raises
from pathlib import Path, PurePath
from typing import Any

from steerfast.io.positions import schedule_from_json, select_from_json, select_to_json
from steerfast.io.strict import as_list, as_object, no_other_keys, parse
from steerfast.io.vectors import load_vector, vector_from_json, vector_to_json
from steerfast.io.whole import check_suffix, written_whole
from steerfast.plans.condition import Condition, Test
from steerfast.plans.operators import OPERATORS
from steerfast.plans.plan import Plan
from steerfast.plans.slim import slim
from steerfast.plans.term import Gate, Term
from steerfast.plans.vector import SteeringVector

SCHEMA = "steerfast.plan/1"
SUFFIX = ".json"
_PLAN_KEYS = {"schema", "terms", "finish", "schedule", "condition"}
_VECTORS = ("vector", "read", "second")
_NUMBERS = ("coefficient", "target", "angle", "bias", "threshold")
_CHOICES = ("scale", "site", "operator")
_TERM_KEYS = {
    *_VECTORS,
    *(f"{name}_digest" for name in _VECTORS),
    *_NUMBERS,
    *_CHOICES,
    "layers",
    "select",
    "gate",
}
_TEST_FIELDS = ("kind", "layer", "threshold", "bias", "site", "over", "below")
_GATE_KEYS = {"kind", "key", "key_digest", "bias", "threshold"}

Resolver = Callable[[str], SteeringVector]


def plan_to_json(plan: Plan, *, inline: bool = True) -> str:
    """JSON text of a plan: inline its vectors by value, with only the layers that it uses; else by name, guarded by
    their digests.

    The plan of the text is equal, whichever. ValueError for what JSON does not hold, and, by name, where two vectors
    have the same one.
    """
    if inline:
        plan = slim(plan)
    else:
        _check_names(plan)
    terms = [_term_to_json(term, inline) for term in plan.terms]
    data: dict[str, Any] = {"schema": SCHEMA, "terms": terms, "finish": plan.finish}
    if plan.schedule is not None:
        data["schedule"] = [list(point) for point in plan.schedule.points]
    if plan.condition is not None:
        tests = []
        for test in plan.condition.tests:
            entry: dict[str, Any] = {name: getattr(test, name) for name in _TEST_FIELDS}
            _put_vector(entry, "key", test.key, inline)
            tests.append(entry)
        data["condition"] = {"require": plan.condition.require, "tests": tests}
    return json.dumps(data, allow_nan=False)


def _check_names(plan: Plan) -> None:
    """ValueError where a name would stand for two vectors: a reader knows one."""
    known: dict[str, str] = {}
    for vector in plan.vectors:
        if known.setdefault(vector.name, vector.digest) != vector.digest:
            raise ValueError(
                f"the plan has two vectors with the name {vector.name!r}, so that it cannot go by names; rename one "
                "(dataclasses.replace(vector, name=...)), or write it with inline=True"
            )


def _term_to_json(term: Term, inline: bool) -> dict[str, Any]:
    """A term's fields; those that its operator does not take are left out."""
    entry: dict[str, Any] = {
        "layers": list(term.steered_layers),
        "site": term.site,
        "select": select_to_json(term.select),
        "operator": term.operator,
    }
    takes = OPERATORS[term.operator]
    for name in takes.required + takes.optional:
        if name not in _VECTORS:
            entry[name] = getattr(term, name)
    vectors = {name: getattr(term, name) for name in _VECTORS}
    for name, vector in vectors.items():
        if vector is not None:
            _put_vector(entry, name, vector, inline)
    if term.gate is not None:
        gate: dict[str, Any] = {"kind": term.gate.kind}
        number = "threshold" if term.gate.kind == "cosine" else "bias"
        gate[number] = getattr(term.gate, number)
        _put_vector(gate, "key", term.gate.key, inline)
        entry["gate"] = gate
    return entry


def _put_vector(entry: dict[str, Any], name: str, vector: SteeringVector, inline: bool) -> None:
    entry[name] = vector_to_json(vector) if inline else vector.name
    if not inline:
        entry[f"{name}_digest"] = vector.digest


def plan_from_json(
    text: str | bytes, vectors: Mapping[str, SteeringVector] | Resolver | None = None
) -> Plan:
    """The plan of a JSON text. ``vectors`` resolves names: a mapping, or a function of the name.

    Raises ValueError for text that is not JSON, a wrong schema, unknown keys (a misspelt key must not
    be ignored), a name that nothing resolves, or a vector whose digest is not the one recorded.
    """
    data = parse(text, "a plan")
    if not isinstance(data, dict) or data.get("schema", SCHEMA) != SCHEMA:
        raise ValueError(f"a plan is a JSON object of schema {SCHEMA!r}, got {str(data)[:80]!r}")
    no_other_keys("a plan", data, _PLAN_KEYS)
    terms = tuple(_term(one, vectors) for one in as_list(data.get("terms"), "'terms' of a plan"))
    schedule = None if data.get("schedule") is None else schedule_from_json(data["schedule"])
    condition = None if data.get("condition") is None else _condition(data["condition"], vectors)
    return Plan(terms, data.get("finish", "none"), schedule, condition)


def save_plan(plan: Plan, path: str | Path, *, inline: bool = True) -> Path:
    """Write ``plan_to_json`` to a file; returns its path. inline: vectors inside the file; False: by name and digest,
    for ``load_plan(path, vectors)``.

    The file appears whole or not at all, and only if ``load_plan`` gives an equal plan. ValueError otherwise, and for a
    path of another suffix than ``.json``.
    """
    path = check_suffix(path, SUFFIX, "a plan")
    text = plan_to_json(plan, inline=inline)
    known = {vector.name: vector for vector in plan.vectors}
    try:
        same = plan_from_json(text, known) == plan
    except ValueError as error:
        raise ValueError(f"the plan cannot be saved: {error}") from error
    if not same:
        raise ValueError("the plan cannot be saved: it reads back as another")
    with written_whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def load_plan(
    path: str | Path, vectors: Mapping[str, SteeringVector] | Resolver | None = None
) -> Plan:
    """Read a plan file. vectors: what its names stand for, a mapping or a function of the name; without it a name is
    a file beside the plan's: ``joy.safetensors``, or ``joy``.

    FileNotFoundError where there is no file. ValueError, with the path, for a folder, a file that holds no plan, a name
    that is not known (or leads outside of the plan's folder), a vector that is not the one that the plan was saved with.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the file of a plan in it, {path / 'plan.json'}")
    if not path.exists():
        raise FileNotFoundError(f"no plan file at {path}")

    def beside(name: str) -> SteeringVector:
        given = PurePath(name)
        if given.is_absolute() or ".." in given.parts or not name.strip():
            raise ValueError(
                f"vector {name[:80]!r} is not in the plan's folder; put its file there"
            )
        file = path.parent / name
        return load_vector(file if isfile(file) else file.with_name(f"{file.name}.safetensors"))

    try:
        return plan_from_json(path.read_bytes(), beside if vectors is None else vectors)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a plan: {error}") from error


def _term(entry: object, vectors: Mapping[str, SteeringVector] | Resolver | None) -> Term:
    if not isinstance(entry, dict) or "vector" not in entry:
        raise ValueError(f"a term is an object with at least 'vector', got {str(entry)[:80]!r}")
    no_other_keys("a term", entry, _TERM_KEYS)
    directions: dict[str, Any] = {
        name: _named(entry, name, vectors) for name in _VECTORS if name in entry
    }
    options = {key: entry[key] for key in (*_NUMBERS, *_CHOICES) if key in entry}
    if "select" in entry:
        options["select"] = select_from_json(entry["select"])
    try:
        gate = _gate(entry["gate"], vectors) if "gate" in entry else None
        return Term(**directions, layers=entry.get("layers"), gate=gate, **options)
    except TypeError as error:  # in a file or a request a wrong type is a wrong value
        name = directions["vector"].name
        raise ValueError(f"a term of {name!r} cannot be read: {error}") from error


def _condition(entry: object, vectors: Mapping[str, SteeringVector] | Resolver | None) -> Condition:
    entry = as_object(entry, "a condition")
    no_other_keys("a condition", entry, {"tests", "require"})
    tests = []
    for test in as_list(entry.get("tests"), "'tests' of a condition"):
        if not isinstance(test, dict) or not {"kind", "key", "layer"} <= test.keys():
            raise ValueError(
                f"a test is an object with 'kind', 'key' and 'layer', got {str(test)[:80]!r}"
            )
        no_other_keys("a test", test, {*_TEST_FIELDS, "key", "key_digest"})
        fields = {name: test[name] for name in _TEST_FIELDS if name in test}
        try:
            tests.append(Test(key=_named(test, "key", vectors), **fields))
        except TypeError as error:
            raise ValueError(f"a test cannot be read: {error}") from error
    return Condition(tuple(tests), entry.get("require", "all"))


def _gate(entry: object, vectors: Mapping[str, SteeringVector] | Resolver | None) -> Gate:
    if not isinstance(entry, dict) or not {"kind", "key"} <= entry.keys():
        raise ValueError(f"a gate is an object with 'kind' and 'key', got {str(entry)[:80]!r}")
    no_other_keys("a gate", entry, _GATE_KEYS)
    numbers = {key: entry[key] for key in ("bias", "threshold") if key in entry}
    return Gate(entry["kind"], _named(entry, "key", vectors), **numbers)


def _named(
    entry: Mapping[str, Any], name: str, vectors: Mapping[str, SteeringVector] | Resolver | None
) -> SteeringVector:
    """The vector under a key, guarded by its digest where one was recorded."""
    vector = _vector(entry[name], vectors)
    recorded = entry.get(f"{name}_digest")
    if recorded is not None and recorded != vector.digest:
        raise ValueError(
            f"the plan was written for another content of vector {vector.name!r} "
            f"(digest {str(recorded)[:12]}, found {vector.digest[:12]})"
        )
    return vector


def _vector(
    value: object, vectors: Mapping[str, SteeringVector] | Resolver | None
) -> SteeringVector:
    if isinstance(value, dict):
        return vector_from_json(value)
    if not isinstance(value, str):
        raise ValueError(f"a term's vector is a name or an object, got {value!r}")
    if vectors is None:
        raise ValueError(
            f"the plan names vector {value!r}, but no vectors were given to resolve it"
        )
    if callable(vectors):
        return vectors(value)
    if value not in vectors:
        raise ValueError(f"the plan names vector {value!r}; known: {', '.join(sorted(vectors))}")
    return vectors[value]
