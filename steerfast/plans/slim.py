"""A plan by itself: its vectors with only the layers that it uses."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from steerfast.plans.plan import Plan
from steerfast.plans.term import Term
from steerfast.plans.vector import SteeringVector


def slim(plan: Plan, *, provenance: bool = True) -> Plan:
    """An equal plan (its digest stays) whose vectors have only the directions and stream norms that it uses.

    A file or a request carries it: a vector of thirty layers that is steered at one needs a thirtieth. Of the norms
    those of every steered site stay, of whatever scale: from them follows how great the plan's dose is. provenance:
    whether it stays too.
    """

    def kept(
        vector: SteeringVector, layers: Iterable[int], normed: Collection[int] = ()
    ) -> SteeringVector:
        norms = {layer: norm for layer, norm in vector.stream_norms.items() if layer in normed}
        directions = {layer: vector.directions[layer] for layer in layers}
        facts = vector.provenance if provenance else {}
        return SteeringVector(vector.name, directions, norms, facts)

    # Of layer l >= 1, resid_pre has the norm of the layer before (``Term.stream_norm``).
    normed = {
        layer - (term.site == "resid_pre") for term in plan.terms for layer in term.steered_layers
    }

    def term(one: Term) -> Term:
        layers = one.steered_layers
        return replace(
            one,
            vector=kept(one.vector, layers, normed),
            read=one.read and kept(one.read, layers),
            second=one.second and kept(one.second, layers),
            gate=one.gate and replace(one.gate, key=kept(one.gate.key, layers)),
        )

    condition = plan.condition
    if condition is not None:
        tests = tuple(replace(test, key=kept(test.key, [test.layer])) for test in condition.tests)
        condition = replace(condition, tests=tests)
    return replace(plan, terms=tuple(term(one) for one in plan.terms), condition=condition)
