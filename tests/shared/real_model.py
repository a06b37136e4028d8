"""The real models as checkpoint folders: read from their GGUF files once, not by every process of the tests."""

from __future__ import annotations

import hashlib
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from steerfast.models import load, packaged

BUILD = Path(__file__).parents[2] / "build"


def real_model_folder(name: str) -> Path:
    """What ``--model`` takes, float32; named by all that it was made of, so that it is never stale. A test that asks for one
    whose packages are not installed is skipped."""
    projects = packaged.PACKAGES[name].projects
    try:
        versions = {each: version(each) for each in (*projects, "steerfast", "transformers")}
    except PackageNotFoundError as absent:
        pytest.skip(f"{absent}, which carries {name}, is not installed: see the targets of make")
    code = b"".join(Path(module.__file__).read_bytes() for module in (load, packaged))
    made_by = hashlib.sha256(code).hexdigest()[:12]
    parts = [f"{each}-{versions[each]}" for each in (projects[0], "steerfast", "transformers")]
    kept = BUILD / "models" / "-".join([*parts, made_by])
    folder = kept / name  # the last part is the model's name in tables
    kept.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):
        if not folder.exists():
            loaded = load.load_model(name, dtype=torch.float32)
            unfinished = kept.with_name(f"{kept.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            loaded.model.save_pretrained(unfinished / folder.name)
            loaded.tokenizer.save_pretrained(unfinished / folder.name)
            unfinished.replace(kept)
    return folder


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct, which ``make setup`` installs."""
    return real_model_folder(packaged.SMOLLM2)


def gemma3_folder() -> Path:
    """Gemma 3 270M, the base model, which ``make gemma`` installs."""
    return real_model_folder(packaged.GEMMA3)
