"""An honest request beside a thousand hostile ones: how long it takes, and what the server's memory does.

A real vLLM server (its API process with the plugin, its engine) over SmolLM2. One client asks for a few tokens, steered by a
plan that the server has not seen; meanwhile others send plans made to do harm (``harness/hostile.py``: the largest
allowed, every limit from below and above). Rounds of three, in turn: ``alone``, beside as many unsteered requests at once
(``plain``), beside hostile ones (``hostile``). The control tells what any crowd costs from what its plans do; so every prompt
is a new one, as a steered prompt is to the prefix cache, and the model has as much to do for either.

Before that, without an engine: the longest that reading one such plan takes at the size of Llama-2-7B, and a plain one.
Prints ``hostile_over_plain``, ``hostile_over_alone``, ``memory_mb`` (of the API process: early, half way, at the end). Run it
in the environment of `make test-serving`: .venv-vllm/bin/python benchmarks/bench_hostile.py
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

SEED = 7
PROMPT = list(range(300, 340))  # behind a token that is another one each time
FIRST = range(1000, 40_000)
CLIENTS = 4  # of the crowd
TOKENS = 16  # of an honest answer
ROUNDS = 5
WIDE = (32, 4096)  # layers and width of Llama-2-7B


def reading(count: int) -> dict[str, Any]:
    """Milliseconds that a reader takes for a hostile plan, at most and in the middle, and for a plain one."""
    import torch

    from harness import hostile
    from steerfast import SteeringVector
    from steerfast.serving.catalogue import Catalogue
    from steerfast.serving.reader import PlanReader
    from steerfast.serving.settings import Settings
    from steerfast.serving.wire import to_wire

    torch.set_num_threads(1)
    layers, width = WIDE
    chance, catalogue = torch.Generator().manual_seed(SEED), Catalogue()
    rows = {at: torch.randn(width, generator=chance) for at in range(layers)}
    catalogue.put("joy", SteeringVector("joy", rows, dict.fromkeys(rows, 10.0)))
    reader = PlanReader(Settings(), layers, width, catalogue=catalogue)

    def taken(text: str) -> float:
        begun = time.perf_counter()
        with contextlib.suppress(ValueError):
            prepared = reader.read(text)
            if prepared is not None:
                to_wire(prepared, len(PROMPT), PROMPT)
        return 1e3 * (time.perf_counter() - begun)

    honest = [taken(_honest(at)) for at in range(10)]
    made = hostile.plans(reader.settings, layers, PROMPT)
    times = [taken(text) for text in itertools.islice(made, count)]
    return {
        "benchmark": "hostile",
        "what": "reading",
        "layers": layers,
        "width": width,
        "honest_ms": round(statistics.median(honest), 2),
        "hostile_ms": {
            "median": round(statistics.median(times), 2),
            "most": round(max(times), 1),
        },
        "plans": count,
    }


def _honest(number: int) -> str:
    return json.dumps({"terms": [{"vector": "joy", "coefficient": 1e-3 * (number + 1)}]})


class Server:
    """vLLM's, as a process."""

    def __init__(self, model: str, vectors: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        environment = {
            "VLLM_PLUGINS": "steerfast,steerfast_http",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "HF_HUB_OFFLINE": "1",
            "STEERFAST_VECTORS": str(vectors),
            "STEERFAST_DOSE_WARN": "1e9",
        }
        options = [
            "--enforce-eager",
            "--max-model-len=512",
            "--max-num-seqs=16",
            "--served-model-name=m",
        ]
        options += ["--dtype=bfloat16", "--block-size=32", f"--port={port}", "--host=127.0.0.1"]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={model}"]
        self.process = subprocess.Popen(
            [*command, *options],
            env=os.environ | environment,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            start_new_session=True,
        )

    def memory(self) -> float:
        """Resident MB of the API process."""
        import psutil

        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(60)


async def _up(client: Any, server: Server) -> None:
    import httpx

    while True:
        with contextlib.suppress(httpx.HTTPError):
            if (await client.get("/health")).status_code == 200:
                return
        if server.process.poll() is not None:
            raise RuntimeError("the server has ended; see its log")
        await asyncio.sleep(0.5)


async def measured(
    server: Server, hostile_plans: Iterator[str], total: int, asked: int
) -> dict[str, Any]:
    """Rounds of honest requests, ``asked`` in each way, beside ``total`` hostile ones in all."""
    import httpx

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
        await _up(client, server)
        times: dict[str, list[float]] = {"alone": [], "plain": [], "hostile": []}
        answers: Counter[int] = Counter()
        numbers, prompts = itertools.count(), itertools.count()
        memory: list[float] = []

        async def ask(plan: str | None, tokens: int) -> int:
            body = {
                "model": "m",
                "prompt": [FIRST[next(prompts) % len(FIRST)], *PROMPT],
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            if plan is not None:
                body["vllm_xargs"] = {"steerfast": plan}
            return int((await client.post("/v1/completions", json=body)).status_code)

        async def honest(into: list[float]) -> None:
            for _ in range(asked):
                begun = time.perf_counter()
                assert await ask(_honest(next(numbers)), TOKENS) == 200
                into.append(time.perf_counter() - begun)

        async def crowd(
            one: Callable[[], Coroutine[Any, Any, None]], into: list[float], least: int
        ) -> None:
            """Honest requests beside a crowd that sends at least so many."""
            sent, done = itertools.count(), asyncio.Event()

            async def member() -> None:
                while not done.is_set() or next(sent) < least:
                    next(sent)
                    await one()

            members = [asyncio.create_task(member()) for _ in range(CLIENTS)]
            await honest(into)
            done.set()
            await asyncio.gather(*members)

        async def plain() -> None:
            await ask(None, 1)

        async def bad() -> None:
            answers[await ask(next(hostile_plans), 1)] += 1
            if sum(answers.values()) % (total // 5) == 0:
                memory.append(server.memory())

        await honest([])  # what is dear the first time
        await crowd(plain, [], 0)
        for _ in range(ROUNDS):
            await honest(times["alone"])
            await crowd(plain, times["plain"], 0)
            await crowd(bad, times["hostile"], 0)
        while sum(answers.values()) < total:
            await asyncio.gather(*(bad() for _ in range(CLIENTS)))
        assert await ask(_honest(next(numbers)), TOKENS) == 200
    return {
        "benchmark": "hostile",
        "what": "server",
        "clients": CLIENTS,
        "prompts": "distinct",  # older lines: one for all, which the cache has for whoever is not steered
        "sent": sum(answers.values()),
        "answers": {str(code): count for code, count in sorted(answers.items())},
        "honest_ms": {
            name: {
                "median": round(1e3 * statistics.median(series), 1),
                "p95": round(1e3 * sorted(series)[int(0.95 * len(series))], 1),
                "requests": len(series),
            }
            for name, series in times.items()
        },
        "memory_mb": [round(one, 1) for one in memory],
    }


def main(given: Sequence[str] | None = None) -> None:
    from importlib.metadata import version

    import torch

    from bench_serving import checkpoint
    from harness import hostile, script
    from harness.machine import setting
    from steerfast import SteeringVector, save_vector
    from steerfast.serving.settings import Settings

    parser = script.parser(__doc__, "hostile", quick="a fifth of the requests")
    parser.add_argument(
        "--model", help="a checkpoint folder with a tokenizer (default: SmolLM2-135M-Instruct)"
    )
    options = parser.parse_args(given)
    total, asked = (200, 3) if options.quick else (1000, 10)
    lines = [reading(48 if options.quick else 240)]
    print(lines[0], file=sys.stderr)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = options.model or checkpoint(None, folder / "model", "bfloat16")
        about = json.loads((Path(model) / "config.json").read_text())
        layers, width = about["num_hidden_layers"], about["hidden_size"]
        rows = {
            at: torch.randn(width, generator=torch.Generator().manual_seed(at))
            for at in range(layers)
        }
        save_vector(
            SteeringVector("joy", rows, dict.fromkeys(rows, 50.0)),
            folder / "vectors" / "joy.safetensors",
        )
        server = Server(str(Path(model).resolve()), folder / "vectors", folder / "log")
        try:
            made = hostile.plans(Settings(), layers, PROMPT)
            lines.append(asyncio.run(measured(server, made, total, asked)))
        except Exception:
            print((folder / "log").read_text()[-4000:], file=sys.stderr)
            raise
        finally:
            server.stop()
    print(lines[1], file=sys.stderr)
    where = setting(SEED)
    where["versions"]["vllm"] = version("vllm" if torch.cuda.is_available() else "vllm-cpu")
    script.keep(options, [{**line, **where} for line in lines])
    times = {name: one["median"] for name, one in lines[1]["honest_ms"].items()}
    script.say(
        options,
        hostile_over_plain=round(times["hostile"] / times["plain"], 3),
        hostile_over_alone=round(times["hostile"] / times["alone"], 3),
        memory_mb=[lines[1]["memory_mb"][at] for at in (0, len(lines[1]["memory_mb"]) // 2, -1)],
    )


if __name__ == "__main__":
    main()
