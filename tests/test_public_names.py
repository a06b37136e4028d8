"""What users import, by name and by parameters: a change here is a change for them, and belongs into CHANGELOG."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

PUBLIC = {
    "steerfast": {
        "AfterSequence": "tokens",
        "Condition": "tests require",
        "ContrastPair": "prompt positive negative negative_prompt",
        "First": "count",
        "Gate": "kind key bias threshold",
        "Plan": "terms finish schedule condition",
        "Positions": "start stop",
        "Report": "rows steered lines layers",
        "Schedule": "points",
        "SteeringVector": "name directions stream_norms provenance",
        "Term": "vector coefficient layers scale site select operator target angle read second bias "
        "threshold gate",
        "Test": "kind key layer threshold bias site over below",
        "attach": "model slots bank_rows programs backend measured prove",
        "cost": "plan model",
        "extract_corpora": "model tokenizer positive negative name position layers max_tokens "
        "batch_size progress",
        "extract_pairs": "model tokenizer pairs name position layers batch_size progress",
        "load": "source name layer layers_are target",
        "load_model": "name dtype device",
        "load_plan": "path vectors",
        "load_vector": "path",
        "plan_from_json": "text vectors",
        "save": "x path layers_are",
        "save_plan": "plan path inline",
        "save_vector": "vector path",
        "steer": "vector coefficient layers scale site select operator finish schedule condition fields",
        "with_stream_norms": "vector model tokenizer texts max_tokens batch_size",
    },
    "steerfast.extraction": {
        "ContrastPair": "prompt positive negative negative_prompt",
        "read_texts": "path limit",
        "with_stream_norms": "vector model tokenizer texts max_tokens batch_size",
    },
    "steerfast.ops": {
        "add_rms_norm": "x residual weight eps norm_order",
        "add_rms_norm_": "x residual weight eps norm_order",
        "steer": "stream steering",
        "steer_": "stream steering",
        "steer_add": "x residual steering",
        "steer_add_rms_norm": "x residual weight eps steering norm_order",
        "steer_add_rms_norm_": "x residual weight eps steering norm_order",
        "steer_halves_": "x residual steering",
        "steer_rms_norm": "stream weight eps steering norm_order",
    },
    "steerfast.serving": {
        "Completion": "tokens text",
        "Request": "prompt plan sampling",
        "armed": "llm",
        "generate_batch": "model requests tokenizer progress config",
        "openai_args": "plan inline",
    },
    "steerfast.sweep": {
        "ForkedPass": "model plans backend forking",
        "sweep": "model plans prompts readout batch_tokens forking done",
    },
    "steerfast.testing": {"cases": "dtypes widths rows seed quick", "ulp": "value dtype"},
}
METHODS = {
    "Handle": {"use", "generating", "report", "detach", "model", "table", "backend"},
    "Use": {"change", "close"},
    "SteeringVector": {
        "name",
        "directions",
        "stream_norms",
        "provenance",
        "layers",
        "suggested_layer",
    },
    "Plan": {"digest", "layers", "vectors"},
    "Schedule": {"ramp", "decay", "window", "table"},
}
DOORS = (
    "steerfast",
    *(f"steerfast.{stage}" for stage in ("extraction", "io", "models", "ops", "plans", "routing")),
    *(f"steerfast.{stage}" for stage in ("serving", "sweep", "table", "testing")),
)


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names]
)
def test_a_public_name_takes_what_it_took(module, name):
    found = getattr(import_module(module), name)
    assert " ".join(inspect.signature(found).parameters) == PUBLIC[module][name]


@pytest.mark.parametrize("kind", METHODS)
def test_an_object_has_what_it_had(kind):
    where = "steerfast.models" if kind in ("Handle", "Use") else "steerfast"
    found = getattr(import_module(where), kind)
    fields = set(getattr(found, "__dataclass_fields__", ())) | set(
        getattr(found, "__annotations__", ())
    )
    own = set(inspect.signature(found).parameters) if kind == "Handle" else set()
    assert set(dir(found)) | fields | own >= METHODS[kind]


@pytest.mark.parametrize("door", DOORS)
def test_a_door_leads_to_all_that_it_names(door):
    module = import_module(door)
    assert module.__all__ == sorted(module.__all__, key=_as_ruff_sorts)
    for name in module.__all__:
        assert getattr(module, name) is not None


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    """Constants first, then classes, then functions."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def test_contrast_sets_are_found_by_name():
    from steerfast import contrast

    assert contrast.load("sentiment").train
    with pytest.raises(AttributeError, match="module 'steerfast' has no attribute 'absent'"):
        import_module("steerfast").absent  # noqa: B018
