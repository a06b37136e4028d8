"""What a plan costs, for its author: phases, and what it takes of the tensors that ``attach`` makes."""

from __future__ import annotations

from typing import Any, NamedTuple

from steerfast.ops.records import MAX_READS, READ_WIDTH, RECORD_WIDTH
from steerfast.plans.fields import whole
from steerfast.plans.plan import Plan
from steerfast.plans.sites import site_count
from steerfast.table.lowering import lower
from steerfast.table.packing import pack

_WORD = 4  # bytes of an int32 and of a float32


class PlanCost(NamedTuple):
    """phases: stretches of tokens that are steered alike, the unsteered one left out; each takes one of ``attach``'s
    ``slots``. bank_rows: deltas and directions; programs: of terms that read the stream; equal ones are shared, also
    with other plans. bytes: of device memory for all of it."""

    phases: tuple[str, ...]
    slots: int
    bank_rows: int
    programs: int
    bytes: int


def cost(plan: Plan, model: Any) -> PlanCost:
    """What ``plan`` takes of a model's table, alone. Time hardly depends on it: constant terms are one addition whatever
    their number.

    model: a model, whose configuration is read, or its number of layers. Raises ValueError for a plan that cannot run
    (more than 16 reads at a site, say) or names layers beyond the model's.
    """
    config: Any = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()  # of the decoder, where vision stands beside it
    layers = whole("model, or its number of layers,", getattr(config, "num_hidden_layers", model))
    if plan.layers[-1] >= layers:
        raise ValueError(f"plan names layer {plan.layers[-1]}, but the model has {layers} layers")
    lowered = lower(plan)
    packed = pack(plan, lowered.phases)
    slots, rows, programs = packed.cost
    words = (
        slots * site_count(layers) * RECORD_WIDTH
        + rows * plan.hidden_size
        + programs * MAX_READS * READ_WIDTH
    )
    steered = tuple(
        phase.name for phase, done in zip(lowered.phases, packed.steered, strict=True) if done
    )
    return PlanCost(steered, slots, rows, programs, _WORD * words)
