"""A tiny random model of every causal language model that the installed transformers knows, from its own registry,
so that the next release is tried by itself. ``python tests/shared/tiny_decoders.py [NAME ...]`` tries them."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import fields
from typing import Any

import torch
from tiny_decoder_sizes import (
    FACTORS,
    LAYERS,
    LEFT_OUT,
    NEEDED,
    SIZES,
    TOKENS,
    VARIANTS,
    exceptions,
)
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

logging.disable_progress_bar()  # what tests print is shown when they fail
TEXT_PARTS = ("text_config", "decoder")  # of a larger model's config
CACHES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
WHOLE_PROMPTS = ("cpmant",)  # takes the tokens that are in its cache too


def decoder_names() -> list[str]:
    """The model types that ``AutoModelForCausalLM`` takes, in transformers' order."""
    return [name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in LEFT_OUT]


def tiny_decoder(
    name: str,
    *,
    layers: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **overrides: Any,
) -> PreTrainedModel:
    """In eval mode, on the CPU. Four layers show every kind that it has; overrides: fields of its config."""
    config = tiny_config(CONFIG_MAPPING[name], layers, overrides)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not isinstance(config, model_class.config_class):  # a decoder out of a larger model
        parts = vars(config).values()
        config = next((p for p in parts if isinstance(p, model_class.config_class)), config)
    if hasattr(config, "is_decoder"):
        config.is_decoder = True  # BERT's relatives look both ways otherwise
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class._from_config(config, dtype=dtype)
        spread_weights(model)
    keep_in_float32(model)
    return model.eval()


def tiny_config(
    kind: type[PreTrainedConfig], layers: int, overrides: dict[str, Any]
) -> PreTrainedConfig:
    """The config's own defaults, with small sizes."""
    default = kind()
    within = next((name for name in TEXT_PARTS if vars(default).get(name) is not None), None)
    own = {field.name for field in fields(kind)}
    passed_on = {name: value for name, value in overrides.items() if within and name not in own}
    given = {**exceptions(layers).get(kind.__name__, {}), **overrides}
    given = {name: value for name, value in given.items() if name not in passed_on}
    small: dict[str, Any] = {}
    depth = 0
    for name in [field.name for field in fields(kind) if field.name not in given]:
        value = vars(default).get(kind.attribute_map.get(name, name))
        if isinstance(value, PreTrainedConfig):
            small[name] = tiny_config(type(value), layers, passed_on if name == within else {})
        elif name in TOKENS:
            small[name] = TOKENS[name]
        elif name == "initializer_range":
            small[name] = 0.1
        elif name == "mlp_only_layers":
            small[name] = [0]
        elif value is None and name in NEEDED:
            small[name] = NEEDED[name]
        elif LAYERS.fullmatch(name) and isinstance(value, int) and value > 1:
            depth = max(depth, value)
            small[name] = layers
        elif (size := small_size(name, value)) != value:
            small[name] = size
    if "kv_lora_rank" in small:  # latent attention makes keys for every head
        small["num_key_value_heads"] = small["num_attention_heads"]
    config = kind(**{**small, **kept_layers(default, depth, layers), **given})
    if "eos_token_id" not in given and hasattr(config, "eos_token_id"):
        config.eos_token_id = None  # some put their own in its place
    return config


def small_size(name: str, value: Any) -> Any:
    """For a number or a list of numbers; anything else, and what has no rule, stays."""
    if isinstance(value, (list, tuple)):
        return type(value)(small_size(name, each) for each in value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    if value == 1:
        return 0.7 if FACTORS.fullmatch(name) else 1
    if isinstance(value, float):
        return value
    return min(value, next((size for rule, size in SIZES if re.fullmatch(rule, name)), value))


def kept_layers(default: PreTrainedConfig, depth: int, layers: int) -> dict[str, list[Any]]:
    """The fields with one entry a layer, cut to ``layers`` of them: first those that differ most."""
    per_layer = {
        name: value
        for name in (field.name for field in fields(default))
        if isinstance(value := vars(default).get(name), (list, tuple)) and len(value) == depth
    }
    kinds = list(zip(*per_layer.values(), strict=True))
    wanted = sorted({kind: kinds.index(kind) for kind in kinds}.values())
    order: list[int] = []
    shown: set[tuple[int, Any]] = set()
    while wanted:
        most = max(wanted, key=lambda index: len(set(enumerate(kinds[index])) - shown))
        shown |= set(enumerate(kinds[most]))
        wanted.remove(most)
        order.append(most)
    order += [index for index in range(depth) if index not in order]
    kept = sorted(order[:layers]) if layers < depth else range(layers)
    return {
        name: small_size(name, [values[index % depth] for index in kept])
        for name, values in per_layer.items()
    }


@torch.no_grad()
def spread_weights(model: PreTrainedModel) -> None:
    """Random weights by which a wrong norm, scale or matrix shows."""
    seen: set[int] = set()
    for module in model.modules():
        kind = type(module).__name__
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) in seen or not weight.is_floating_point():
                continue
            seen.add(id(weight))
            middle = weight.flatten()[0].item()
            constant = bool((weight == middle).all())
            if "Norm" in kind and name == "weight":  # 1P: 1 + w, though made of ones
                middle = 0.0 if kind.endswith("1P") else middle
                weight.uniform_(middle - 0.5, middle + 0.5)
            elif constant:
                weight.normal_(middle, 0.1)
            elif weight.ndim > 1:
                weight.normal_(0, 0.1)
        for name, buffer in module.named_buffers(recurse=False):
            if name in module._non_persistent_buffers_set or not buffer.is_floating_point():
                continue
            if (buffer == 1).all():
                buffer.fill_(0.7)
            elif (buffer == 0).all():
                buffer.uniform_(0, 0.1)


def keep_in_float32(model: PreTrainedModel) -> None:
    """What ``from_pretrained`` would leave in float32 in a model of another dtype."""
    kept = "|".join(map(re.escape, model._keep_in_fp32_modules_strict or ())) or "(?!)"
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if re.search(rf"(^|\.)({kept})($|\.)", name):
            tensor.data = tensor.data.float()


@torch.no_grad()
def run_twice(model: PreTrainedModel) -> list[torch.Tensor]:
    """The logits of two prompts, the first left padded, and of one more token each with the cache of the first pass
    (for a model without a cache: of the prompts with that token)."""
    ids = torch.randint(2, 128, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    first = model(input_ids=ids[:, :6], attention_mask=mask[:, :6], use_cache=True)
    cache = {name: first[name] for name in CACHES if first.get(name) is not None}
    if cache and model.config.model_type not in WHOLE_PROMPTS:
        ids = ids[:, 6:]
    if "mems" in cache or "cache_params" in cache:  # their masks are of the new tokens alone
        mask = mask[:, 6:]
    second = model(input_ids=ids, attention_mask=mask, use_cache=True, **cache)
    logits = [first.logits, second.logits]
    if not all(each.isfinite().all() for each in logits):
        raise ValueError("its logits are not finite")
    return logits


def try_all(models: list[tuple[str, dict[str, Any]]]) -> None:
    """Prints a line for each: whether it runs, its size and how long it took."""
    logging.set_verbosity_error()
    failed = 0
    for name, overrides in models:
        start = time.perf_counter()
        title = " ".join([name, *(f"{key}={value}" for key, value in overrides.items())])
        try:
            model = tiny_decoder(name, **overrides)
            run_twice(model)
            size = sum(parameter.numel() for parameter in model.parameters())
            state = f"ok, {size / 1e3:.0f}k parameters"
        except Exception as error:
            state = f"failed, {type(error).__name__}: {error}".replace("\n", " ")[:300]
            failed += 1
        print(f"{title}: {state}, {time.perf_counter() - start:.2f} s", flush=True)
    print(f"{len(models) - failed} of {len(models)} run")
    for name, reason in LEFT_OUT.items():
        print(f"{name}: left out, {reason}")


if __name__ == "__main__":
    chosen = sys.argv[1:] or decoder_names()
    with_switches = [variant for variant in VARIANTS if variant[0] in chosen]
    try_all([(name, {}) for name in chosen] + with_switches)
