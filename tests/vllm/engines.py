"""The other side of every comparison: transformers, the plans of the tests, and engines to ask."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import steerfast as sf
from steerfast.io.plans import plan_to_json

DIRECTIONS = torch.Generator().manual_seed(1)
JOY = sf.SteeringVector(
    "joy", {layer: torch.randn(256, generator=DIRECTIONS) for layer in range(4)}, {1: 16.0}
)
ODD = sf.SteeringVector(
    "odd", {layer: torch.randn(256, generator=DIRECTIONS) for layer in range(4)}
)
PLANS: dict[str, sf.Plan | None] = {
    "unsteered": None,
    "plus": sf.steer(JOY, 3.0, layers=[1]),
    "minus": sf.steer(JOY, -3.0, layers=[1]),
    "generated": sf.steer(JOY, 3.0, layers=[1], select="generated"),
    "scheduled": sf.steer(JOY, 3.0, layers=[1], schedule=sf.Schedule.ramp(-4, 6, 0.2, 1.5)),
    "gated": sf.steer(JOY, 4.0, layers=[1], gate=sf.Gate("hard", ODD)),
    "ablated": sf.steer(JOY, layers=[1, 2], operator="ablate"),
    "turned": sf.steer(
        JOY, operator="rotate_to", second=ODD, angle=0.8, layers=[2], finish="preserve"
    ),
    "everywhere": sf.Plan(
        (
            sf.Term(JOY, 2.0, (0,), site="resid_pre"),
            sf.Term(ODD, -2.0, (1,), site="resid_mid", select="after_prompt"),
            sf.Term(ODD, operator="clamp", target=3.0, layers=(2,), select=sf.Positions(5, 90)),
            sf.Term(JOY, 1.5, (3,), select="last_prompt_token"),
            sf.Term(JOY, 0.5, (3,), operator="add_relative"),
        )
    ),
}


def prompt(length: int = 140, seed: int = 2) -> list[int]:
    """Token ids; the default is longer than four blocks of 32."""
    return torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


class Oracle:
    """transformers' tokens."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.handle = sf.attach(self.model)
        self._known: dict[tuple[Any, ...], list[int]] = {}

    def tokens(self, ids: Sequence[int], plan: sf.Plan | None, count: int = 12) -> list[int]:
        if (tuple(ids), plan and plan.digest, count) not in self._known:
            self.learn(ids, [plan], count)
        return self._known[tuple(ids), plan and plan.digest, count]

    def learn(self, ids: Sequence[int], plans: Sequence[sf.Plan | None], count: int = 12) -> None:
        """What ``tokens`` answers for one prompt under each plan, in one batch."""
        with self.handle.use(list(plans)) if any(plans) else contextlib.nullcontext():
            out = self.model.generate(
                torch.tensor([list(ids)] * len(plans)),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        for plan, row in zip(plans, out[:, len(ids) :].tolist(), strict=True):
            self._known[tuple(ids), plan and plan.digest, count] = row


def sampling(plan: sf.Plan | None, count: int = 12, **more: Any) -> Any:
    """Greedy, to the last token, steered."""
    from vllm import SamplingParams

    extra = None if plan is None else {"steerfast": plan_to_json(plan)}
    fixed = {"max_tokens": count, "temperature": 0, "ignore_eos": True, "logprobs": 0}
    return SamplingParams(**fixed | more, extra_args=extra)


@contextlib.contextmanager
def engine(folder: Path, *, processes: bool = False, **options: Any) -> Iterator[Any]:
    """An offline engine; in processes of its own, as users have it, or in this one, which starts in a fifth of the time
    (but hears that requests have ended, and gives their slots free, with the next request only)."""
    from vllm import LLM

    fixed = {
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "max_num_seqs": 16,
        "block_size": 32,
        "max_num_batched_tokens": 512,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", str(int(processes)))
        llm = LLM(model=str(folder), **fixed | options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def answers(
    llm: Any, prompts: Sequence[Sequence[int]], params: Sequence[Any], lora: Any = None
) -> list[Any]:
    """RequestOutputs of a batch; lora: None, or a LoRARequest or None for each."""
    return llm.generate(
        [{"prompt_token_ids": list(ids)} for ids in prompts],
        list(params),
        use_tqdm=False,
        lora_request=lora,
    )


def tokens(output: Any) -> list[int]:
    return list(output.outputs[0].token_ids)
