"""An OpenAI-compatible server of vLLM as a process, and how to ask it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

OPTIONS = [
    "--dtype=float32",
    "--enforce-eager",
    "--max-model-len=512",
    "--max-num-seqs=32",
    "--block-size=32",
    "--max-num-batched-tokens=512",
    "--served-model-name=tiny",
    "--host=127.0.0.1",
]


class Server:
    """Where it listens, and its process."""

    def __init__(self, url: str, process: subprocess.Popen, log: Path) -> None:
        self.url, self.process, self.log = url, process, log

    def get(self, path: str, **more) -> httpx.Response:
        return httpx.get(self.url + path, timeout=600, **more)

    def post(self, path: str, **more) -> httpx.Response:
        return httpx.post(self.url + path, timeout=600, **more)

    def health(self) -> dict:
        return self.get("/steerfast/health").json()

    def memory(self) -> int:
        """Resident bytes of the server and all processes below it."""
        import psutil

        own = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in (own, *own.children(recursive=True)))


@contextlib.contextmanager
def server(folder: Path, log: Path, environment: dict[str, str], *options: str) -> Iterator[Server]:
    """Up when it answers /health; a start that fails raises with the end of its log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={folder}"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *OPTIONS, f"--port={port}", *options],
            env=os.environ | environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=log.parent,  # no metadata of the checkout in the way
            start_new_session=True,
        )
    here = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        for _ in range(2400):
            with contextlib.suppress(httpx.HTTPError):
                if here.get("/health").status_code == 200:
                    break
            if process.poll() is not None:
                raise RuntimeError(log.read_text()[-4000:])
            time.sleep(0.5)
        else:
            raise RuntimeError(log.read_text()[-4000:])
        yield here
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
