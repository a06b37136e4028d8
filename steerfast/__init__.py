"""Activation steering fused into the residual stream of Llama models.

attach(model) patches it; Plan and Term say what a request gets; extract makes vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steerfast.errors import SteerfastError
from steerfast.io import (
    load,
    load_plan,
    load_vector,
    plan_from_json,
    save,
    save_plan,
    save_vector,
)
from steerfast.plans.condition import Condition, Test
from steerfast.plans.plan import Plan, steer
from steerfast.plans.schedule import Schedule
from steerfast.plans.selectors import AfterSequence, First, Positions
from steerfast.plans.term import Gate, Term
from steerfast.plans.vector import SteeringVector

if TYPE_CHECKING:
    from steerfast.extraction import (
        ContrastPair,
        contrast,
        extract_corpora,
        extract_pairs,
        with_stream_norms,
    )
    from steerfast.models import Handle, Report, attach, handle_of
    from steerfast.models.load import load_model
    from steerfast.table.cost import cost

__version__ = "0.1.0"

_LAZY = {
    "ContrastPair": "steerfast.extraction",
    "Handle": "steerfast.models",
    "Report": "steerfast.models",
    "attach": "steerfast.models",
    "contrast": "steerfast.extraction",
    "cost": "steerfast.table.cost",
    "extract_corpora": "steerfast.extraction",
    "extract_pairs": "steerfast.extraction",
    "handle_of": "steerfast.models",
    "load_model": "steerfast.models.load",
    "with_stream_norms": "steerfast.extraction",
}

__all__ = [
    "AfterSequence",
    "Condition",
    "ContrastPair",
    "First",
    "Gate",
    "Handle",
    "Plan",
    "Positions",
    "Report",
    "Schedule",
    "SteerfastError",
    "SteeringVector",
    "Term",
    "Test",
    "attach",
    "contrast",
    "cost",
    "extract_corpora",
    "extract_pairs",
    "handle_of",
    "load",
    "load_model",
    "load_plan",
    "load_vector",
    "plan_from_json",
    "save",
    "save_plan",
    "save_vector",
    "steer",
    "with_stream_norms",
]


def __getattr__(name: str) -> Any:
    """Parts that load the compiled ops or transformers come on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'steerfast' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
