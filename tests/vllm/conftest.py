"""Real engines of vLLM over a tiny Llama in float32, and what transformers says with the same plans.

Run by `make test-serving`, in an environment with vLLM; elsewhere everything here is skipped. An engine in processes of
its own imports vLLM three times, twenty seconds of a core: only what needs or tests that starts one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

import pytest

if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]

# Before vLLM is imported, here and in the processes that it starts.
os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # engines of tests that run side by side would take the same core
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
    "STEERFAST_INLINE": "1",
    "STEERFAST_MAX_PLAN_BYTES": "1000000",
    "STEERFAST_DOSE_WARN": "1e9",
}


def sources() -> str:
    """A digest of the package, which is in the graphs that engines compile."""
    root = Path(__file__).parents[2]
    found = [*root.glob("steerfast/**/*.py"), *root.glob("kernels/*.py"), *root.glob("csrc/**/*.*")]
    texts = (path.read_bytes() for path in sorted(found) if path.is_file())
    return hashlib.sha256(b"".join(texts)).hexdigest()[:12]


@pytest.fixture(scope="session", autouse=True)
def compile_cache():
    """What one engine has compiled, others find, as long as the package is the same."""
    cache = Path(__file__).parents[2] / "build" / "vllm" / sources()
    os.environ.setdefault("VLLM_CACHE_ROOT", str(cache))


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
