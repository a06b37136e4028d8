"""Continuations of a few prompts under a few plans, for a report: numbers alone hide what a model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steerfast.experiments.measure import Laboratory
from steerfast.experiments.trials import Trials
from steerfast.plans.plan import Plan

TOKENS = 40


def examples(
    laboratory: Laboratory,
    prompts: Sequence[str],
    plans: Mapping[str, Plan | None],
    trials: Trials,
) -> list[dict[str, Any]]:
    """[{"prompt", "texts": [{"label", "text"}]}]: greedy, 40 tokens, a row of one batch for each plan."""
    jobs = [laboratory.texts(list(plans.values()), prompt, TOKENS) for prompt in prompts]
    return [
        {
            "prompt": prompt,
            "texts": [
                {"label": label, "text": result["text"].strip()}
                for label, result in zip(plans, results, strict=True)
            ],
        }
        for prompt, results in zip(prompts, trials.complete(jobs), strict=True)
    ]
