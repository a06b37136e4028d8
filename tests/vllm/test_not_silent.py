"""What would be answered unsteered, or by nobody, without a word: refused, or told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engines import JOY, PLANS, answers, engine, prompt, sampling, tokens

import steerfast as sf
from steerfast.errors import SteerfastError
from steerfast.io.plans import plan_to_json
from steerfast.serving import armed

HERE = Path(__file__).parent
IN_ANOTHER_PROCESS = """
import json, os, sys
from engines import PLANS, answers, engine, prompt, sampling
from steerfast.serving import armed
def main():
    if "late" in sys.argv:  # the front end has the plugin, the engine's processes do not
        from vllm.plugins import load_general_plugins
        load_general_plugins()
        os.environ["VLLM_PLUGINS"] = ""
    with engine(sys.argv[1], processes="late" in sys.argv) as llm:
        found = {"armed": armed(llm)}
        try:
            [out] = answers(llm, [prompt()], [sampling(PLANS["plus"])])
            found["steered"] = list(out.outputs[0].token_ids)
        except Exception as error:
            found["refused"] = f"{type(error).__name__}: {error}"
        [out] = answers(llm, [prompt()], [sampling(None)])
        found["unsteered"] = list(out.outputs[0].token_ids)
    print(json.dumps(found))
if __name__ == "__main__":
    main()
"""


def elsewhere(folder, tmp_path, *words, **environment):
    """What an engine says in a process of its own, and with ``late`` in the processes that it starts."""
    script = tmp_path / "ask.py"
    script.write_text(IN_ANOTHER_PROCESS)
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *words],
        env=os.environ | {"PYTHONPATH": str(HERE)} | environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_an_engine_without_the_plugin_can_be_told(folder, oracle, tmp_path):
    """It ignores the field, as vLLM does with every field that it does not know; so there is a way to ask."""
    found = elsewhere(folder, tmp_path, VLLM_PLUGINS="")
    assert found["armed"] is None
    assert found["steered"] == found["unsteered"] == oracle.tokens(prompt(), None)


def test_workers_without_the_plugin_are_found_out(folder, oracle, tmp_path):
    found = elsewhere(folder, tmp_path, "late")
    assert found["armed"] is None
    assert "SteerfastError" in found["refused"]
    assert "would run unsteered" in found["refused"]
    assert found["unsteered"] == oracle.tokens(prompt(), None)


def test_another_architecture_refuses_plans_and_serves_the_rest(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.1,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    from vllm.exceptions import VLLMValidationError

    with engine(tmp_path, skip_tokenizer_init=True) as llm:
        assert armed(llm) is None
        with pytest.raises(VLLMValidationError, match=r"cannot steer.*Qwen2ForCausalLM"):
            answers(llm, [prompt()], [sampling(PLANS["plus"])])
        [out] = answers(llm, [prompt()], [sampling(None, detokenize=False)])
        assert len(tokens(out)) == 12


def test_in_one_engine(folder, oracle):
    """One after another, to start it once: what is refused, what is accepted, and that it goes on."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    ids, plan = prompt(), PLANS["plus"]
    with engine(folder, processes=True) as llm:
        # A batch with one bad plan is refused whole, before anything runs.
        bad = sf.steer(sf.SteeringVector("far", {9: JOY.at(1)}), 1.0)
        with pytest.raises(VLLMValidationError, match="layer 9"):
            answers(llm, [ids, ids], [sampling(None), sampling(bad)])
        small = sf.steer(sf.SteeringVector("small", {1: torch.ones(64)}), 1.0)
        with pytest.raises(VLLMValidationError, match="hidden size 64"):
            answers(llm, [ids], [sampling(small)])
        for forged in ({"digest": "0"}, "{}"):
            with pytest.raises(VLLMValidationError, match="not for clients"):
                SamplingParams(extra_args={"steerfast.wire": forged})
        # Forged after the check of its making.
        params = sampling(None)
        params.extra_args = {"steerfast.wire": {"digest": "0"}}
        with pytest.raises(VLLMValidationError, match="not for clients"):
            answers(llm, [ids], [params])
        with pytest.raises(VLLMValidationError, match="unknown field"):
            SamplingParams(extra_args={"SteerFast": plan_to_json(plan)})
        # As text, as a dict, as a Plan; and None for nobody.
        for value in (plan_to_json(plan), json.loads(plan_to_json(plan)), plan):
            params = sampling(None)
            params.extra_args = {"steerfast": value}
            [out] = answers(llm, [ids], [params])
            assert tokens(out) == oracle.tokens(ids, plan)
            assert params.extra_args == {"steerfast": value}  # the caller's own stay as they were
        params.extra_args = {"steerfast": None}
        assert tokens(answers(llm, [ids], [params])[0]) == oracle.tokens(ids, None)
        nothing = sf.steer(JOY, 0.0, layers=[1])
        assert tokens(answers(llm, [ids], [sampling(nothing)])[0]) == oracle.tokens(ids, None)
        # Thousands of plans through few slots.
        many = [sf.steer(JOY, 0.01 * n, layers=[1]) for n in range(1, 1001)]
        outs = answers(llm, [ids[:9]] * len(many), [sampling(one, 2) for one in many])
        for n in (0, 1, 500, 999):
            assert tokens(outs[n]) == oracle.tokens(ids[:9], many[n], 2)
        status = armed(llm)
        assert (status["slots_in_use"], status["requests"]) == (0, 0)


def test_few_slots_for_many_plans(folder, oracle, monkeypatch):
    """Requests wait for room; nobody is refused, and nobody goes unsteered."""
    monkeypatch.setenv("STEERFAST_SLOTS", "5")
    with engine(folder, processes=True) as llm:
        prompts = [prompt(30 + n, seed=n) for n in range(40)]
        plans = [sf.steer(JOY, 4.0 * (-1) ** n * (1 + n / 40), layers=[n % 4]) for n in range(40)]
        outs = answers(llm, prompts, [sampling(plan, 8) for plan in plans])
        for ids, plan, out in zip(prompts, plans, outs, strict=True):
            assert tokens(out) == oracle.tokens(ids, plan, 8)
        assert armed(llm)["slots_in_use"] == 0


def test_what_install_finds_missing():
    from steerfast.serving.vllm import arming
    from steerfast.serving.vllm.patching import wrap

    with pytest.raises(
        SteerfastError, match=r"has no vllm\.sampling_params:SamplingParams\.no_such"
    ):
        wrap("vllm.sampling_params:SamplingParams", "no_such", None)
    import vllm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "__version__", "0.33.0")
        with pytest.raises(SteerfastError, match=r"steers vLLM 0\.32, and this is 0\.33\.0"):
            arming.check_version()


def test_numbers_out_of_place_are_an_error_of_their_request_alone(folder, oracle, monkeypatch):
    """As a front end of another version might send them: the engine core makes no request of them, and goes on."""
    from steerfast.serving.vllm import front

    own, ids = front.to_wire, prompt()
    damage = {"sites": bytes(19), "rows": b"\xff" * 1024, "course": [[0, 3]]}
    with engine(folder, processes=True) as llm:
        for name, value in damage.items():
            with monkeypatch.context() as patch:
                patch.setattr(
                    front, "to_wire", lambda *given, at=(name, value): own(*given) | dict([at])
                )
                bad, good = answers(llm, [ids, ids], [sampling(PLANS["plus"]), sampling(None)])
            assert (tokens(bad), bad.outputs[0].finish_reason) == ([], "error"), name
            assert tokens(good) == oracle.tokens(ids, None)
        [out] = answers(llm, [ids], [sampling(PLANS["plus"])])
        assert tokens(out) == oracle.tokens(ids, PLANS["plus"])
        assert armed(llm)["slots_in_use"] == 0
