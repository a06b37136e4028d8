"""Features of sparse autoencoders in the layouts of their publishers, against the encoders written out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from plain_steering import logits_with, steered_logits
from safetensors.torch import save_file
from tiny_llama import tiny_llama

from steerfast import load, steer

D, F = 8, 10
RNG = torch.Generator().manual_seed(0)
W_ENC, W_DEC = torch.randn(D, F, generator=RNG), torch.randn(F, D, generator=RNG)
B_ENC, B_DEC = torch.randn(F, generator=RNG), torch.randn(D, generator=RNG)
THRESHOLD = torch.rand(F, generator=RNG)
STREAMS = torch.randn(40, D, generator=RNG)


def gemma_scope_2(folder):
    """google/gemma-scope-2-*: resid_post/layer_17_width_16k_l0_medium/params.safetensors, config.json beside it."""
    folder = folder / "resid_post" / "layer_17_width_16k_l0_medium"
    folder.mkdir(parents=True)
    save_file(
        {name: one.contiguous() for name, one in TENSORS.items()}, folder / "params.safetensors"
    )
    said = {
        "hf_hook_point_in": "model.layers.17.output",
        "architecture": "jump_relu",
        "model_name": "gemma-3-4b-it",
    }
    (folder / "config.json").write_text(json.dumps(said))
    return folder / "params.safetensors", 17, jumprelu(STREAMS @ W_ENC + B_ENC, THRESHOLD)


def gemma_scope_1(folder):
    """google/gemma-scope-2b-pt-res: layer_20/width_16k/average_l0_71/params.npz, not compressed, no file beside it."""
    folder = folder / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    np.savez(
        folder / "params.npz",
        W_enc=W_ENC,
        W_dec=W_DEC,
        b_enc=B_ENC,
        b_dec=B_DEC,
        threshold=THRESHOLD,
    )
    return folder / "params.npz", 20, jumprelu(STREAMS @ W_ENC + B_ENC, THRESHOLD)


def llama_scope(folder):
    """fnlp/Llama3_1-8B-Base-LXR-8x: hyperparams.json, checkpoints/final.safetensors; streams are scaled to sqrt(D)."""
    folder = folder / "Llama3_1-8B-Base-L15R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    save_file(
        {
            "encoder.weight": W_ENC.T.contiguous(),
            "encoder.bias": B_ENC,
            "decoder.weight": W_DEC.T.contiguous(),
            "decoder.bias": B_DEC,
        },
        folder / "checkpoints" / "final.safetensors",
    )
    said = {"hook_point_in": "blocks.15.hook_resid_post", "jump_relu_threshold": 0.25, "d_model": D,
            "dataset_average_activation_norm": {"in": 4.0, "out": 4.0}}  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(said))
    scale = (
        D**0.5 / 4.0
    )  # SAELens folds it so: into the encoder, out of the decoder, and into the threshold
    acts = jumprelu(STREAMS * scale @ W_ENC + B_ENC, 0.25 * scale)
    return folder / "checkpoints" / "final.safetensors", 15, acts, 1 / scale


def llama_scope_r1(folder):
    """fnlp/Llama-Scope-R1-Distill: L15R/sae_weights.safetensors, config.json; the logarithm of the threshold."""
    folder = folder / "400M-Slimpajama" / "L15R"
    folder.mkdir(parents=True)
    save_file(
        {"encoder.weight": W_ENC.T.contiguous(), "encoder.bias": B_ENC, "decoder.weight": W_DEC.T.contiguous(),
         "decoder.bias": B_DEC, "log_jumprelu_threshold": THRESHOLD.log()},
        folder / "sae_weights.safetensors",
    )  # fmt: skip
    (folder / "config.json").write_text(
        json.dumps({"hook_point_in": "blocks.15.hook_resid_post", "d_model": D})
    )
    return folder / "sae_weights.safetensors", 15, jumprelu(STREAMS @ W_ENC + B_ENC, THRESHOLD)


def qwen_scope(folder):
    """Qwen/SAE-Res-*: layer12.sae.pt; both matrices lie the other way round."""
    path = folder / "layer12.sae.pt"
    torch.save(
        {
            "W_enc": W_ENC.T.contiguous(),
            "W_dec": W_DEC.T.contiguous(),
            "b_enc": B_ENC,
            "b_dec": B_DEC,
        },
        path,
    )
    return path, 12, (STREAMS @ W_ENC + B_ENC).relu()


def dictionary_learning(folder, tensors, kind):
    (folder / "trainer_0").mkdir()
    torch.save(tensors, folder / "trainer_0" / "ae.pt")
    said = {
        "trainer": {"layer": 3, "dict_class": kind, "lm_name": "org/tiny"},
        "buffer": {"ctx_len": 8},
    }
    (folder / "trainer_0" / "config.json").write_text(json.dumps(said))
    return folder / "trainer_0" / "ae.pt"


def relu_dictionary(folder):
    """AutoEncoder: relu(encoder(x - bias))."""
    tensors = {
        "encoder.weight": W_ENC.T.contiguous(),
        "encoder.bias": B_ENC,
        "decoder.weight": W_DEC.T.contiguous(),
        "bias": B_DEC,
    }
    return (
        dictionary_learning(folder, tensors, "AutoEncoder"),
        3,
        ((STREAMS - B_DEC) @ W_ENC + B_ENC).relu(),
    )


def batch_top_k_dictionary(folder):
    """BatchTopKSAE: a threshold for all, behind x - b_dec."""
    tensors = {"encoder.weight": W_ENC.T.contiguous(), "encoder.bias": B_ENC, "decoder.weight": W_DEC.T.contiguous(),
               "b_dec": B_DEC, "threshold": torch.tensor(0.5), "k": torch.tensor(4)}  # fmt: skip
    path = dictionary_learning(folder, tensors, "BatchTopKSAE")
    return path, 3, jumprelu((STREAMS - B_DEC) @ W_ENC + B_ENC, 0.5)


def jump_relu_dictionary(folder):
    """JumpReluAutoEncoder: no b_dec in the encoder."""
    tensors = {
        "W_enc": W_ENC,
        "W_dec": W_DEC,
        "b_enc": B_ENC,
        "b_dec": B_DEC,
        "threshold": THRESHOLD,
    }
    return (
        dictionary_learning(folder, tensors, "JumpReluAutoEncoder"),
        3,
        jumprelu(STREAMS @ W_ENC + B_ENC, THRESHOLD),
    )


def matryoshka_dictionary(folder):
    tensors = {
        "W_enc": W_ENC,
        "W_dec": W_DEC,
        "b_enc": B_ENC,
        "b_dec": B_DEC,
        "threshold": torch.tensor(0.5),
    }
    path = dictionary_learning(folder, tensors, "MatryoshkaBatchTopKSAE")
    return path, 3, jumprelu((STREAMS - B_DEC) @ W_ENC + B_ENC, 0.5)


def goodfire(folder):
    """Goodfire/Llama-3.1-8B-Instruct-SAE-l19: one .pth."""
    path = folder / "Llama-3.1-8B-Instruct-SAE-l19.pth"
    torch.save({"encoder_linear.weight": W_ENC.T.contiguous(), "encoder_linear.bias": B_ENC,
                "decoder_linear.weight": W_DEC.T.contiguous(), "decoder_linear.bias": B_DEC}, path)  # fmt: skip
    return path, 19, (STREAMS @ W_ENC + B_ENC).relu()


TENSORS = {"w_enc": W_ENC, "w_dec": W_DEC, "b_enc": B_ENC, "b_dec": B_DEC, "threshold": THRESHOLD}


def jumprelu(z, threshold):
    return torch.where(z > threshold, z, 0.0)


LAYOUTS = [gemma_scope_2, gemma_scope_1, llama_scope, llama_scope_r1, qwen_scope, relu_dictionary,
           batch_top_k_dictionary, jump_relu_dictionary, matryoshka_dictionary, goodfire]  # fmt: skip


@pytest.mark.parametrize("make", LAYOUTS)
@pytest.mark.filterwarnings("ignore:a feature of .* is active only among the k greatest")
def test_a_feature_reads_and_writes_as_its_sae_does(make, tmp_path):
    path, layer, acts, *rest = make(tmp_path)
    unscaled = rest[0] if rest else 1.0
    assert acts.count_nonzero() > 100
    for feature in (0, 4, F - 1):
        (term,) = load(f"{path}#{feature}", target=3.0).terms
        assert term.steered_layers == (layer,)
        z = STREAMS @ term.read.at(layer) + term.bias
        torch.testing.assert_close(jumprelu(z, term.threshold), acts[:, feature])
        torch.testing.assert_close(term.vector.at(layer), W_DEC[feature] * unscaled)
        vector = load(f"{path}#{feature}", name="f")
        assert (vector.name, vector.layers, vector.provenance["feature"]) == (
            "f",
            (layer,),
            feature,
        )
        assert torch.equal(vector.at(layer), term.vector.at(layer))
        assert f"the output of layer {layer}" in vector.provenance["layer_convention"]


def test_top_k_is_said_to_be_inexact(tmp_path):
    path, *_ = qwen_scope(tmp_path)
    with pytest.warns(UserWarning, match="active only among the k greatest"):
        load(f"{path}#1", target=1.0)


def test_a_clamped_feature_steers(tmp_path):
    """x + (t - f) d at the layer's output, f from the SAE's own encoder."""
    model = tiny_llama(hidden=D, layers=4, heads=2)
    path, *_ = jump_relu_dictionary(tmp_path)
    plan = load(f"{path}#4", target=3.0)

    def clamp(module, args, out):
        z = out @ W_ENC + B_ENC
        return out + (3.0 - jumprelu(z, THRESHOLD)[..., 4:5]) * W_DEC[4]

    hook = model.model.layers[3].register_forward_hook(clamp)
    wanted = logits_with(model)
    hook.remove()
    torch.testing.assert_close(steered_logits(model, plan), wanted, atol=1e-5, rtol=1e-5)
    added = logits_with(model, {3: 2.0 * W_DEC[4]})
    torch.testing.assert_close(steered_logits(model, steer(load(f"{path}#4"), 2.0)), added)


def test_bfloat16_is_read_as_it_is(tmp_path):
    path = tmp_path / "layer_3.safetensors"
    save_file({name: one.bfloat16() for name, one in TENSORS.items()}, path)
    assert torch.equal(load(f"{path}#2").at(3), W_DEC[2].bfloat16().float())


@pytest.mark.parametrize(
    ("hook", "layer"),
    [("blocks.5.hook_resid_pre", 4), ("blocks.5.hook_resid_post", 5), ("model.layers.7.output", 7), ("model.layers.7.input", 6),
     ("model.layers.7", 7)],
)  # fmt: skip
def test_layers_are_converted(hook, layer, tmp_path):
    path, *_ = gemma_scope_2(tmp_path)
    (path.parent / "config.json").write_text(json.dumps({"hook_name": hook}))
    assert load(f"{path}#0").layers == (layer,)


@pytest.mark.parametrize("hook", ["blocks.5.hook_resid_mid", "blocks.5.attn.hook_z", "blocks.5.hook_mlp_out",
                                  "model.layers.5.self_attn.o_proj.input", "blocks.0.hook_resid_pre"])  # fmt: skip
def test_saes_of_other_places_are_refused(hook, tmp_path):
    path, *_ = gemma_scope_2(tmp_path)
    (path.parent / "config.json").write_text(json.dumps({"hook_name": hook}))
    with pytest.raises(
        ValueError, match="taken are those of the residual stream at a layer's output"
    ):
        load(f"{path}#0")


def test_what_is_missing_is_asked_for(tmp_path):
    path, *_ = llama_scope(tmp_path)
    (path.parent.parent / "hyperparams.json").unlink()
    with pytest.raises(
        ValueError, match=r"the hyperparams\.json that has it is not beside the file"
    ):
        load(f"{path}#0", target=1.0)
    lone = tmp_path / "sae.safetensors"
    lone.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="which layer's output it reads; give layer="):
        load(f"{lone}#0")
    assert load(f"{lone}#0", layer=2).layers == (2,)
    with pytest.raises(ValueError, match="write '#' and the number of a feature"):
        load(lone)
    with pytest.raises(ValueError, match=f"no feature {F}; it has 0 to {F - 1}"):
        load(f"{lone}#{F}", layer=2)
    with pytest.raises(ValueError, match="leave out layers_are"):
        load(f"{lone}#0", layers_are="inputs")
    with pytest.raises(ValueError, match="a target belongs to a feature"):
        load(torch.ones(1, 3), target=1.0, layers_are="outputs")


def test_what_no_row_can_say_is_refused(tmp_path):
    tensors = {"encoder.weight": W_ENC.T.contiguous(), "encoder.bias": B_ENC, "decoder.weight": W_DEC.T.contiguous(),
               "bias": B_DEC, "gate_bias": B_ENC, "r_mag": B_ENC, "mag_bias": B_ENC}  # fmt: skip
    path = dictionary_learning(tmp_path, tensors, "GatedAutoEncoder")
    assert torch.equal(load(f"{path}#3").at(3), W_DEC[3])
    with pytest.raises(ValueError, match="no row, bias and threshold; take the direction"):
        load(f"{path}#3", target=1.0)
    square = tmp_path / "layer_1.npz"
    np.savez(
        square,
        W_enc=torch.ones(4, 4),
        W_dec=torch.ones(4, 4),
        b_enc=torch.ones(4),
        b_dec=torch.ones(4),
    )
    with pytest.raises(ValueError, match="does not show 4 features of 4 values"):
        load(f"{square}#0")
    packed = tmp_path / "layer_2.npz"
    np.savez_compressed(packed, W_enc=W_ENC, W_dec=W_DEC, b_enc=B_ENC, b_dec=B_DEC)
    with pytest.raises(ValueError, match=r"is compressed, so that no row of it can be read alone"):
        load(f"{packed}#0")
    poisoned = tmp_path / "layer_4.npz"
    np.savez(poisoned, W_enc=W_ENC, W_dec=W_DEC * float("nan"), b_enc=B_ENC, b_dec=B_DEC)
    with pytest.raises(ValueError, match="feature 0 of W_dec holds NaN"):
        load(f"{poisoned}#0")
    turned = tmp_path / "layer_5.npz"
    np.savez(
        turned,
        W_enc=np.asfortranarray(W_ENC),
        W_dec=np.asfortranarray(W_DEC),
        b_enc=B_ENC,
        b_dec=B_DEC,
    )
    assert torch.equal(load(f"{turned}#7").at(5), W_DEC[7])
