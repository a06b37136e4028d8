"""Every way to run an engine gives transformers' tokens, with the same plans, alone and in a batch of all."""

from __future__ import annotations

import os

import pytest
import torch
from engines import PLANS, answers, engine, prompt, sampling, tokens

from steerfast.serving import armed

NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_max": 3,
    "prompt_lookup_min": 1,
}
# name: (environment, options of the engine)
ENGINES = {
    "eager": ({}, {"processes": True}),
    "exact": ({"STEERFAST_MODE": "exact"}, {}),
    "chunked": ({}, {"max_num_batched_tokens": 64}),
    "chunked-exact": ({"STEERFAST_MODE": "exact"}, {"max_num_batched_tokens": 64}),
    "memory": ({}, {"num_gpu_blocks_override": 17, "disable_log_stats": False}),
    "compiled": ({}, {"enforce_eager": False, "processes": True}),
    "compiled-exact": ({"STEERFAST_MODE": "exact"}, {"enforce_eager": False}),
    "ngram": ({}, {"speculative_config": NGRAM}),
    # In processes: to patch its kernels vLLM reads every attribute of every module, and trips over some of a test's.
    "draft": (
        {},
        {
            "speculative_config": {"method": "draft_model", "num_speculative_tokens": 3},
            "processes": True,
        },
    ),
    "two-ranks": (
        {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        {"tensor_parallel_size": 2, "processes": True},
    ),
    # Compiled: without a profiling run vLLM has no room for what a stage hands on.
    "two-stages": (
        {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        {"pipeline_parallel_size": 2, "enforce_eager": False, "processes": True},
    ),
}
# A CUDA build of vLLM: captured graphs, both runners, drafts ahead of what the host knows. Never run yet.
GRAPHS = {"enforce_eager": False}
FIRST, SECOND = ({"VLLM_USE_V2_MODEL_RUNNER": which} for which in "01")
ON_A_GPU = {
    "first-runner": (FIRST, GRAPHS),
    "second-runner": (SECOND, GRAPHS),
    "second-exact": (SECOND | {"STEERFAST_MODE": "exact"}, GRAPHS),
    "second-chunked": (SECOND, GRAPHS | {"max_num_batched_tokens": 64}),
    "second-memory": (SECOND, GRAPHS | {"num_gpu_blocks_override": 17}),
    "first-draft": (
        FIRST,
        GRAPHS | {"speculative_config": {"method": "draft_model", "num_speculative_tokens": 3}},
    ),
    "second-draft": (
        SECOND,
        GRAPHS | {"speculative_config": {"method": "draft_model", "num_speculative_tokens": 3}},
    ),
}
# Preempted requests are computed anew: enough of them, and long enough, to run out of 17 blocks.
COUNT = {"memory": 40, "second-memory": 40}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA build of vLLM and a GPU")
@pytest.mark.parametrize("name", ON_A_GPU)
def test_tokens_on_a_gpu(name, folder, oracle, monkeypatch):
    check(name, *ON_A_GPU[name], folder, oracle, monkeypatch)


@pytest.mark.parametrize("name", ENGINES)
def test_tokens(name, folder, oracle, monkeypatch):
    check(name, *ENGINES[name], folder, oracle, monkeypatch)


def check(name, environment, options, folder, oracle, monkeypatch):
    if name.startswith("two") and (os.cpu_count() or 1) < 2:
        pytest.skip("two ranks want two cores")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    if "draft" in name:  # the model drafts for itself, unsteered
        options["speculative_config"]["model"] = str(folder)
    count = COUNT.get(name, 12)
    ids = prompt()
    wanted = {key: oracle.tokens(ids, plan, count) for key, plan in PLANS.items()}
    assert len({tuple(each) for each in wanted.values()}) == len(PLANS)  # every plan shows
    with engine(folder, **options) as llm:
        status = armed(llm)
        assert status
        assert status["mode"] == environment.get("STEERFAST_MODE", "fused")
        assert status["workers"] == (2 if name.startswith("two") else 1)
        for key, plan in PLANS.items():
            [alone] = answers(llm, [ids], [sampling(plan, count)])
            assert tokens(alone) == wanted[key], f"{key}, alone"
        # Together, each at a length of its own, so that rows of a step are in all phases at once.
        prompts = [ids[: len(ids) - 7 * place] for place in range(len(PLANS))]
        batch = answers(llm, prompts, [sampling(plan, count) for plan in PLANS.values()])
        for (key, plan), each, out in zip(PLANS.items(), prompts, batch, strict=True):
            assert tokens(out) == oracle.tokens(each, plan, count), f"{key}, together"
        [again] = answers(llm, [ids], [sampling(None, count)])
        assert tokens(again) == wanted["unsteered"]
        assert armed(llm)["slots_in_use"] == 0
        if name in COUNT and not options.get("disable_log_stats", True):
            assert preemptions(llm) > 0


def preemptions(llm) -> float:
    return sum(
        metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"
    )
