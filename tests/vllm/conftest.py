"""Real engines of vLLM over a tiny Llama in float32, and what transformers says with the same plans.

Run by `make test-serving`, in an environment with vLLM; elsewhere everything here is skipped. Engines start in
fifteen seconds and more, so that each test file starts as few as it can.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

# Before vLLM is imported, here and in the processes that it starts.
os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    "STEERFAST_INLINE": "1",
    "STEERFAST_MAX_PLAN_BYTES": "1000000",
    "STEERFAST_DOSE_WARN": "1e9",
}


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory):
    """Compiled artefacts of these tests only."""
    os.environ.setdefault("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("vllm")))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A saved Llama whose greedy tokens vary (4 layers, D = 256, 512 tokens), with a byte-level tokenizer."""
    from tiny_llama import save_tiny_llama

    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    sizes = {"hidden": 256, "heads": 8, "vocabulary": 512, "max_position_embeddings": 2048}
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny", template, **sizes)


@pytest.fixture(scope="session")
def oracle(folder):
    """tokens(prompt, plan, count): what transformers generates greedily, patched; computed once for equal arguments."""
    from engines import Oracle

    return Oracle(folder)


def pytest_sessionstart(session):
    """Metadata of another build that lies in the way would leave every engine unarmed."""
    from importlib.metadata import entry_points

    if importlib.util.find_spec("vllm") and not entry_points(
        group="vllm.general_plugins", name="steerfast"
    ):
        pytest.exit(
            "vLLM sees no plugin named steerfast: run `make test-serving`, and remove steerfast.egg-info",
            2,
        )
