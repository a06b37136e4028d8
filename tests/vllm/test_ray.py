"""The Ray examples of docs/serving.md, as they stand there, but for layer 10, which the tiny model has not."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from engines import JOY, prompt

import steerfast as sf

if importlib.util.find_spec("ray") is None:
    pytest.skip("ray is not installed", allow_module_level=True)

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"


def example(word: str) -> str:
    """The code block that imports ``word``."""
    [found] = [
        code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S) if word in code
    ]
    return found.replace('"layers": [10]', '"layers": [1]')


@contextlib.contextmanager
def running(script: Path, folder: Path):
    """The example as a process, in a folder that holds the model and the vectors."""
    (script.parent / "vectors").mkdir()
    vector = sf.SteeringVector("sentiment", JOY.directions, JOY.stream_norms)
    sf.save_vector(vector, script.parent / "vectors" / "sentiment.safetensors")
    # An absolute path: the actors of Ray stand elsewhere.
    code = script.read_text().replace('model_source="smollm2"', f"model_source={str(folder)!r}")
    script.write_text(code.replace('"model_source": "smollm2"', f'"model_source": {str(folder)!r}'))
    with (script.parent / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, script.name],
            cwd=script.parent,
            env=os.environ | {"STEERFAST_VECTORS": str(script.parent / "vectors")},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process, script.parent / "vectors")


def left(session: int, vectors: Path) -> list[psutil.Process]:
    """What the example has started, and they in turn, wherever their parents are: all that is in its session or has its
    environment.

    Ray gives each worker a process group of its own and, when it ends, kills workers without the engines below them, which
    then belong to process 1. Some (not all) overwrite their environment with a title.
    """
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if one.status() != psutil.STATUS_ZOMBIE and (
                os.getsid(one.pid) == session
                or one.environ().get("STEERFAST_VECTORS") == str(vectors)
            ):
                found.append(one)
    return found


def end(process: subprocess.Popen, vectors: Path) -> None:
    """Nothing of it survives; Ray and vLLM of other people on the machine do."""
    # Asked first: who tidies shared memory does so once its clients are gone. Killed again and again, as some start others.
    for what, seconds, often in (("terminate", 15, False), ("kill", 120, True)):
        asked: set[psutil.Process] = set()
        deadline = time.monotonic() + seconds
        while (rest := left(process.pid, vectors)) and time.monotonic() < deadline:
            for one in rest if often else set(rest) - asked:
                with contextlib.suppress(psutil.NoSuchProcess):
                    getattr(one, what)()
            asked.update(rest)
            time.sleep(0.2)
    process.wait(120)
    assert not rest, rest


def test_data(folder, oracle, tmp_path):
    script = tmp_path / "batch.py"
    script.write_text(example("vLLMEngineProcessorConfig"))
    rows = [{"tokens": prompt(30, n), "dose": float(n - 5)} for n in range(12)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with running(script, folder) as process:
        assert process.wait(2400) == 0, (tmp_path / "log").read_text()[-3000:]
    answers = [
        json.loads(line) for part in (tmp_path / "answers").iterdir() for line in part.open()
    ]
    assert len(answers) == 12
    for row in answers:
        plan = sf.steer(JOY, row["dose"], layers=[1]) if row["dose"] else None
        wanted = oracle.tokens(row["tokens"], plan)
        stop = wanted.index(1) + 1 if 1 in wanted else len(wanted)  # the example stops at </s>
        assert row["answer"] == wanted[:stop]
    engines = set(
        re.findall(r"MapWorker\(MapBatches\(vLLM\w+\)\) pid=(\d+)", (tmp_path / "log").read_text())
    )
    assert len(engines) == 2


def test_serve(folder, oracle, tmp_path):
    script = tmp_path / "serve.py"
    script.write_text(example("build_openai_app") + "\nimport time\ntime.sleep(3600)\n")
    plan = {"terms": [{"vector": "sentiment", "layers": [1], "coefficient": 3.0}]}
    url = "http://127.0.0.1:8000/v1/chat/completions"

    def ask(value):
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": "Good morning"}],
            "max_tokens": 12,
            "temperature": 0,
            "logprobs": True,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        body |= {} if value is None else {"vllm_xargs": {"steerfast": value}}
        return httpx.post(url, json=body, timeout=600)

    with running(script, folder) as process:
        for _ in range(1200):
            with contextlib.suppress(httpx.HTTPError):
                if ask(None).status_code == 200:
                    break
            assert process.poll() is None, (tmp_path / "log").read_text()[-3000:]
            time.sleep(1)
        for value, steering in ((None, None), (json.dumps(plan), sf.steer(JOY, 3.0, layers=[1]))):
            found = ask(value).json()
            tokens = found["choices"][0]["token_ids"]
            assert tokens == oracle.tokens(found["prompt_token_ids"], steering)
        assert ask("nobody knows").status_code == 400
