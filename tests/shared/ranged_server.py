"""A web server for one folder that knows ranges, in a thread, and counts the bytes that it serves."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any


@contextlib.contextmanager
def serving(folder: Path, *, ranges: bool = True) -> Iterator[SimpleNamespace]:
    """.url, .served (bytes of bodies), .requests [(path, range, headers)]. A path that begins with /moved/ redirects."""
    state: Any = SimpleNamespace(served=0, requests=[])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
        wbufsize = -1

        def do_GET(self) -> None:
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            state.requests.append((self.path, asked and asked[0], dict(self.headers)))
            if self.path.startswith("/moved/"):
                self._answer(302, b"", Location=state.other + self.path.removeprefix("/moved/"))
                return
            file = folder / self.path.lstrip("/").partition("?")[0]
            if not file.is_file():
                self._answer(404, b"no such file")
                return
            size = file.stat().st_size
            if not ranges or asked is None:
                self._answer(200, file.read_bytes())
                return
            first, last = int(asked[1]), min(int(asked[2]), size - 1)
            with file.open("rb") as opened:
                opened.seek(first)
                self._answer(
                    206,
                    opened.read(last - first + 1),
                    **{"Content-Range": f"bytes {first}-{last}/{size}"},
                )

        def _answer(self, status: int, body: bytes, **headers: str) -> None:
            state.served += len(body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}/"
    state.other = f"http://localhost:{server.server_port}/"  # the same, as another host
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
