"""The assistant axis' ``capping_config.pt``: an experiment of it as a plan of ceilings.

    p = <h, v̂>;  h - max(p - cap, 0) v̂    at the output of each of its layers, all tokens

which is the operator ``ceiling``. A vector of the file may point away from the assistant: the cap bounds p from above.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from steerfast.io.formats.found import layer_number, real
from steerfast.plans.plan import Plan
from steerfast.plans.term import Term
from steerfast.plans.vector import SteeringVector

FACTS = {
    "format": "capping configuration (assistant axis)",
    "layer_convention": "layer l is the output of layer l, layers from 0",
}


def is_capping(tree: Any) -> bool:
    """Whether a ``.pt`` file holds such a configuration."""
    return (
        isinstance(tree, dict)
        and isinstance(tree.get("experiments"), list)
        and isinstance(tree.get("vectors"), dict)
    )


def capping_plan(tree: dict[str, Any], experiment: str | None) -> Plan:
    """The plan of an experiment, by its id; ValueError that names those there are."""
    experiments = {one.get("id"): one for one in tree["experiments"] if isinstance(one, dict)}
    if experiment not in experiments:
        known = ", ".join(str(name) for name in experiments)
        raise ValueError(
            f"it has no experiment {experiment!r:.80}; write '#' and one of: {known[:400]}"
        )
    terms = []
    interventions = experiments[experiment].get("interventions")
    for one in interventions if isinstance(interventions, list) else ():
        if isinstance(one, dict) and "cap" in one:
            terms.append(_term(tree["vectors"], one, str(experiment)))
    if not terms:
        raise ValueError(f"experiment {experiment!r:.80} caps nothing")
    return Plan(tuple(terms))


def _term(vectors: dict[Any, Any], intervention: dict[str, Any], experiment: str) -> Term:
    name, cap = intervention.get("vector"), intervention["cap"]
    entry = vectors.get(name)
    if (
        not isinstance(name, str)
        or not isinstance(entry, dict)
        or not isinstance(entry.get("vector"), Tensor)
    ):
        raise ValueError(f"an intervention names vector {name!r:.80}, which the file does not have")
    if isinstance(cap, Tensor) and cap.numel() == 1:
        cap = cap.item()
    if isinstance(cap, bool) or not isinstance(cap, (int, float)) or not math.isfinite(cap):
        raise ValueError(f"the cap of {name!r:.80} is {cap!r:.40}; it is a finite number")
    layer = layer_number(entry.get("layer"), f"vector {name!r:.80}")
    vector = SteeringVector(
        name, {layer: real(entry["vector"], name)}, provenance={**FACTS, "experiment": experiment}
    )
    return Term(vector, operator="ceiling", target=float(cap))
