"""One prompt twice in one batch: unsteered and under a plan."""

from __future__ import annotations

from typing import NamedTuple

import torch

from steerfast.experiments.demo import encode_prompt, pad_token
from steerfast.models import Report, attach
from steerfast.models.load import Loaded
from steerfast.plan import Plan


class SideBySide(NamedTuple):
    """Two texts, and the proof from the last step that one of them was steered."""

    unsteered: str
    steered: str
    report: Report


@torch.inference_mode()
def side_by_side(
    loaded: Loaded,
    prompt: str,
    plan: Plan,
    *,
    tokens: int = 64,
    chat: bool | None = None,
    sample: bool = False,
    seed: int = 0,
) -> SideBySide:
    """Generate both continuations; ``chat=None`` uses the chat template if the tokenizer has one."""
    model, tokenizer, _ = loaded
    ids = encode_prompt(tokenizer, prompt, chat).to(next(model.parameters()).device).expand(2, -1)
    torch.manual_seed(seed)
    with attach(model) as handle, handle.use([None, plan]):
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=sample,
            pad_token_id=pad_token(tokenizer),
        )
        report = handle.report()
    unsteered, steered = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return SideBySide(unsteered.strip(), steered.strip(), report)
