"""Writes the files of other libraries that tests read, with those libraries (README.md says in which environment)."""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_steering import TOKENS
from tiny_llama import tiny_llama

HERE = Path(__file__).parent
D, LAYERS, FEATURES = 16, 4, 24


def stand_ins() -> None:
    """What the packages import and these files do not need."""
    np.float64 = np.float64  # repeng 0.4.0 names what numpy 2 has dropped
    wandb = types.ModuleType("wandb")
    wandb.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    sys.modules["wandb"] = wandb


def directions(seed: int, layers: range) -> dict[int, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {layer: rng.standard_normal(D).astype(np.float32) for layer in layers}


def logits(model: Any) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return model(TOKENS).logits.numpy()


def of_repeng() -> np.ndarray[Any, Any]:
    from repeng import ControlModel, ControlVector

    vector = ControlVector("llama", directions(1, range(1, LAYERS)))
    vector.export_gguf(HERE / "repeng.gguf")
    model = ControlModel(tiny_llama(hidden=D, layers=LAYERS), list(range(1, LAYERS)))
    model.set_control(vector, 1.5)
    return logits(model)


def of_steering_vectors() -> np.ndarray[Any, Any]:
    from steering_vectors import SteeringVector

    given = {layer: torch.from_numpy(one) for layer, one in directions(2, range(1, 3)).items()}
    vector = SteeringVector(given, "decoder_block")
    torch.save(vars(vector), HERE / "steering_vectors.pt")
    torch.save(vector, HERE / "steering_vectors_object.pt")
    model = tiny_llama(hidden=D, layers=LAYERS)
    with vector.apply(model, multiplier=1.5):
        return logits(model)


def of_sae_lens() -> dict[str, np.ndarray[Any, Any]]:
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig

    kinds = {
        "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig),
        "standard": (StandardSAE, StandardSAEConfig),
    }
    found = {"streams": np.random.default_rng(3).standard_normal((5, D)).astype(np.float32)}
    for name, (kind, config) in kinds.items():
        torch.manual_seed(4)
        sae = kind(config(d_in=D, d_sae=FEATURES, apply_b_dec_to_input=name == "standard"))
        sae.cfg.metadata.hook_name = "blocks.2.hook_resid_post"
        sae.cfg.metadata.model_name = "tiny"
        with torch.no_grad():
            for parameter in sae.parameters():
                parameter.normal_(std=0.5)
            if name == "jumprelu":
                sae.threshold.abs_()
        sae.save_model(HERE / f"saelens-{name}")
        found[name] = sae.encode(torch.from_numpy(found["streams"])).detach().numpy()
    return found


def of_scikit_learn() -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(5)
    streams = rng.standard_normal((60, D)) * np.linspace(0.5, 8, D) + 3
    labels = (streams @ rng.standard_normal(D) > 3).astype(int)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(streams, labels)
    scaler, probe = (step for _, step in pipeline.steps)
    return {
        "scaler": {"mean_": scaler.mean_.tolist(), "scale_": scaler.scale_.tolist()},
        "probe": {
            "coef_": probe.coef_.tolist(),
            "intercept_": probe.intercept_.tolist(),
            "classes_": [0, 1],
        },
        "streams": streams[:6].tolist(),
        "decisions": pipeline.decision_function(streams[:6]).tolist(),
    }


if __name__ == "__main__":
    stand_ins()
    np.savez(HERE / "logits.npz", repeng=of_repeng(), steering_vectors=of_steering_vectors())
    np.savez(HERE / "features.npz", **of_sae_lens())
    (HERE / "probe.json").write_text(json.dumps(of_scikit_learn(), indent=1) + "\n")
