"""Bytes of a file by ranges, here or on a server: a feature of an SAE is kilobytes in gigabytes."""

from __future__ import annotations

import copy
import http.client
import io
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urljoin, urlsplit

TIMEOUT = 60.0  # seconds, of one request
CONNECTIONS = 8  # to a server, where many small ranges are wanted
_REDIRECTS = (301, 302, 303, 307, 308)


class ByteRanges(Protocol):
    """size: of the file. taken: bytes read so far. read(at, count): those bytes; ValueError if they are not there.
    read_each: the bytes of many places, in order."""

    size: int
    taken: int

    def read(self, at: int, count: int) -> bytes: ...

    def read_each(self, places: Sequence[tuple[int, int]]) -> list[bytes]: ...

    def close(self) -> None: ...


class LocalRanges:
    """Of a file on disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.size, self.taken = os.fstat(self._file.fileno()).st_size, 0

    def read(self, at: int, count: int) -> bytes:
        check_range(at, count, self.size)
        data = b""
        while len(data) < count:
            self._file.seek(at + len(data))
            piece = self._file.read(count - len(data))
            if not piece:
                raise ValueError("the file became shorter while it was read")
            data += piece
        self.taken += count
        return data

    def read_each(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        return [self.read(at, count) for at, count in places]

    def close(self) -> None:
        self._file.close()


class WebRanges:
    """Of a file on a server that knows ranges (``Range: bytes=first-last``), over one connection.

    headers: sent to the first host only, never to one that it redirects to. ValueError if the server sends the whole file
    instead of a range, OSError if it cannot be reached.
    """

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self._url, self._headers = url, dict(headers or {})
        self._connection: http.client.HTTPConnection | None = None
        self.taken, self.size = 0, 0
        self._find()

    def _find(self) -> None:
        """Follows redirects, and asks for one byte to learn the size."""
        for _ in range(6):
            answer = self._ask(0, 1)
            if answer.status in _REDIRECTS:
                answer.read()
                before, self._url = (
                    urlsplit(self._url),
                    urljoin(self._url, answer.headers["Location"]),
                )
                if urlsplit(self._url).netloc != before.netloc:
                    self._headers = {}
                self.close()
                continue
            total = (answer.headers.get("Content-Range") or "").rpartition("/")[2]
            if answer.status != 206 or not total.isdigit():
                self.close()  # unread: it may be the whole file
                if answer.status >= 400:
                    raise FileNotFoundError(f"{self._url} answers {answer.status} {answer.reason}")
                raise ValueError(
                    f"{self._url} is served without ranges (status {answer.status}); download the file"
                )
            self.taken += len(answer.read(1))
            self.size = int(total)
            return
        raise ValueError(f"{self._url} redirects without end")

    def _ask(self, at: int, count: int) -> http.client.HTTPResponse:
        parts = urlsplit(self._url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ValueError(f"{self._url[:200]!r} is no address of a web server")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {
            **self._headers,
            "Range": f"bytes={at}-{at + count - 1}",
            "Accept-Encoding": "identity",
        }
        for attempt in (0, 1):  # a server may close a connection that it kept
            if self._connection is None:
                self._connection = kind(parts.hostname, parts.port, timeout=TIMEOUT)
            try:
                self._connection.request("GET", target, headers=headers)
                return self._connection.getresponse()
            except (http.client.HTTPException, ConnectionError) as error:
                self.close()
                if attempt:
                    raise OSError(f"{self._url} cannot be read: {error}") from error
        raise AssertionError

    def read(self, at: int, count: int) -> bytes:
        check_range(at, count, self.size)
        if not count:
            return b""
        answer = self._ask(at, count)
        data = answer.read(count) if answer.status == 206 else b""
        if len(data) != count or answer.read(1):
            self.close()
            raise ValueError(
                f"{self._url} was asked for {count} bytes at {at} and sent something else ({answer.status})"
            )
        self.taken += count
        return data

    def read_each(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Over several connections: a request a place takes as long as the server is far."""
        if len(places) < 2 * CONNECTIONS:
            return [self.read(at, count) for at, count in places]
        share = -(-len(places) // CONNECTIONS)
        parts = [places[first : first + share] for first in range(0, len(places), share)]
        with ThreadPoolExecutor(len(parts)) as pool:
            read = [data for part in pool.map(self._read_aside, parts) for data in part]
        self.taken += sum(map(len, read))
        return read

    def _read_aside(self, places: Sequence[tuple[int, int]]) -> list[bytes]:
        """Over a connection of its own."""
        aside = copy.copy(self)
        aside._connection = None
        try:
            return [aside.read(at, count) for at, count in places]
        finally:
            aside.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class RangedFile(io.RawIOBase):
    """The same as a file object, for ``zipfile``."""

    def __init__(self, ranges: ByteRanges) -> None:
        self._ranges, self._at = ranges, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._ranges.size)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._ranges.size - self._at))
        buffer[:count] = self._ranges.read(self._at, count)
        self._at += count
        return count


def check_range(at: int, count: int, size: int) -> None:
    """ValueError for bytes beyond the end of a file."""
    if at < 0 or count < 0 or at + count > size:
        raise ValueError(
            f"it lies about its sizes: {count} bytes at {at} are not in a file of {size}"
        )


class Closing:
    """A ``with`` for what has ``close``."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
