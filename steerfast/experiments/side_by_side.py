"""One prompt twice in one batch: unsteered and under a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from steerfast.experiments.prompts import encode_prompt, pad_token
from steerfast.models import Report, attach
from steerfast.models.handle import SteeredRows
from steerfast.models.load import Loaded
from steerfast.plans.plan import Plan


class SideBySide(NamedTuple):
    """Two texts, and what was steered on the way: the rows of all steps added up."""

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
    from transformers import LogitsProcessorList

    model, tokenizer, _ = loaded
    ids = encode_prompt(tokenizer, prompt, chat).to(next(model.parameters()).device).expand(2, -1)
    torch.manual_seed(seed)
    reports: list[Report] = []

    def record(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """A logits processor, because that is what generate calls after every forward."""
        reports.append(handle.report())
        return scores

    with attach(model) as handle, handle.use([None, plan]):
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=sample,
            pad_token_id=pad_token(tokenizer),
            logits_processor=LogitsProcessorList([record]),
        )
    unsteered, steered = tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)
    return SideBySide(unsteered.strip(), steered.strip(), total(reports))


def explained(report: Report, dose: float | None = None) -> str:
    """One line of the report of ``side_by_side``. dose: of the plan, in norms of the stream, where it is known."""
    if not report.steered:
        return "no token was steered: the plan acted nowhere on this prompt and its answer"
    sites = sorted(
        {line.site for line in report.lines}, key=lambda site: int(site[:-1].split("[")[1])
    )
    at = ", ".join(sites) if len(sites) < 4 else f"{len(sites)} sites, {sites[0]} to {sites[-1]}"
    # Half of the rows are the unsteered text's; the last token of a text is never read.
    known = "" if dose is None else f", by {dose:.2g} times the stream's typical norm in all"
    return f"steered {report.steered} of the {report.rows // 2} tokens read, at {at}{known}"


def total(reports: Sequence[Report]) -> Report:
    """One report over several forwards."""
    rows: Counter[SteeredRows] = Counter()
    for report in reports:
        for line in report.lines:
            rows[replace(line, rows=0)] += line.rows
    lines = tuple(replace(line, rows=count) for line, count in rows.items())
    return Report(sum(r.rows for r in reports), sum(r.steered for r in reports), lines)
