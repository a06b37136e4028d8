"""Fixtures shared by the tests: a tiny random Llama with a byte-level tokenizer, and the real small one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Before anything else is imported, here and in the processes that tests start: no test may reach for a hub; one
# thread, since tests run side by side and threads that wait for work take it from whatever else is running; and
# what one test has compiled, all find.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / "build/triton"))


def pytest_configure():
    import torch

    torch.set_num_threads(1)  # also where a plugin of pytest's has imported torch before


def pytest_collection_modifyitems(config, items):
    """Tests of every decoder take minutes, and run when the marker is named."""
    if "every_decoder" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("every_decoder")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("every_decoder")]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A saved Llama (4 layers, D = 64) and tokenizer, as ``--model FOLDER`` takes it."""
    from tiny_llama import save_tiny_llama

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    return save_tiny_llama(folder, vocabulary=258)


@pytest.fixture
def tiny(tiny_folder):
    """(model, tokenizer, name), float32, fresh for every test."""
    import torch

    from steerfast.models.load import load_model

    return load_model(str(tiny_folder), dtype=torch.float32)


@pytest.fixture(scope="session")
def smollm2_folder():
    """SmolLM2-135M-Instruct as ``--model`` takes it; skipped where its package is not installed."""
    from real_model import smollm2_folder

    return smollm2_folder()


@pytest.fixture(scope="session")
def smollm2(smollm2_folder):
    """(model, tokenizer, name) of SmolLM2-135M-Instruct in float32."""
    import torch

    from steerfast.models.load import load_model

    return load_model(str(smollm2_folder), dtype=torch.float32)


@pytest.fixture(scope="session")
def gemma3_folder():
    """Gemma 3 270M as ``--model`` takes it; skipped where its packages are not installed."""
    from real_model import gemma3_folder

    return gemma3_folder()


@pytest.fixture(scope="session")
def gemma3(gemma3_folder):
    """(model, tokenizer, name) of Gemma 3 270M in float32."""
    import torch

    from steerfast.models.load import load_model

    return load_model(str(gemma3_folder), dtype=torch.float32)


@pytest.fixture(scope="session")
def paper_data():
    """The published data of the paper: a folder given by STEERFAST_DATA, or beside the checkout."""
    folder = Path(os.environ.get("STEERFAST_DATA", ROOT.parent / "shared" / "data")) / "paper"
    if not folder.is_dir():
        pytest.skip(
            "the paper's data is not here; set STEERFAST_DATA to the folder that holds paper/"
        )
    return folder
