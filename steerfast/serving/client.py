"""What a client of a steered server needs: the field of a request, and whether the engine is armed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerfast.io.plans import plan_to_json
from steerfast.plans.plan import Plan
from steerfast.serving.wire import FIELD


def openai_args(plan: Plan | Mapping[str, Any] | str, *, inline: bool = True) -> dict[str, Any]:
    """The ``extra_body`` of the ``openai`` client for a request that is steered by ``plan``.

    client.chat.completions.create(..., extra_body=openai_args(plan))

    plan: a Plan, a plan as a dict or JSON text, or the name of one that is registered on the server. inline: a Plan's
    vectors by value, which a server must allow (STEERFAST_INLINE); False sends their names and digests.
    """
    if isinstance(plan, Plan):
        text = plan_to_json(plan, inline=inline)
    elif isinstance(plan, str):
        text = plan
    else:
        import json

        text = json.dumps(dict(plan))
    return {"vllm_xargs": {FIELD: text}}


def armed(llm: Any) -> dict[str, Any] | None:
    """Whether an offline ``vllm.LLM`` steers: workers, version, mode, capacity; None if it does not, and would ignore plans."""
    from steerfast.serving.vllm.arming import STATUS, merged

    try:
        return merged(llm.collective_rpc(STATUS))
    except Exception:  # an engine without the plugin has no such method, and says so in its own way
        return None
