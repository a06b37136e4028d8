"""Where a vector lies: a file here, one on a web server, one in a repository of the Hugging Face hub.

    vectors/joy.gguf                             a path
    https://host/path/joy.gguf                   read by ranges where a part will do
    hf://owner/repo/folder/joy.gguf              a model's repository; hf://datasets/owner/repo/... a data set's
    hf://owner/repo@revision/folder/joy.gguf     of a branch, tag or commit

and behind ``#`` which part of it: a feature, an array, an experiment.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from os.path import isfile
from pathlib import Path, PurePosixPath
from typing import Protocol

from steerfast.io.byte_ranges import ByteRanges, LocalRanges, WebRanges

LARGEST_DOWNLOAD = 2**28  # bytes of a file that is fetched whole from a server
LARGEST_BESIDE = 2**22  # of a JSON that lies beside it
_HUB = re.compile(r"hf://(datasets/)?([^/@#]+/[^/@#]+)(?:@([^/]+))?/(.+)")
_HUB_KINDS = {"datasets": "dataset"}


class Place(Protocol):
    """path: as it was given, without ``#``. ranges(): its bytes. file(): a path to the whole of it, while open.
    beside(name): the bytes of a small file relative to it, or None."""

    path: str

    def ranges(self) -> ByteRanges: ...

    def file(self) -> AbstractContextManager[Path]: ...

    def beside(self, name: str) -> bytes | None: ...


class LocalPlace:
    def __init__(self, path: Path) -> None:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give the file of a vector in it")
        if not isfile(path):
            raise FileNotFoundError(f"no vector file at {path}")
        self.path, self._file = str(path), path

    def ranges(self) -> ByteRanges:
        return LocalRanges(self._file)

    @contextmanager
    def file(self) -> Iterator[Path]:
        yield self._file

    def beside(self, name: str) -> bytes | None:
        there = self._file.parent / name
        if not isfile(there) or there.stat().st_size > LARGEST_BESIDE:
            return None
        return there.read_bytes()


class WebPlace:
    def __init__(self, url: str) -> None:
        self.path = url

    def ranges(self) -> ByteRanges:
        return WebRanges(self.path)

    @contextmanager
    def file(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder) / PurePosixPath(self.path.partition("?")[0]).name
            here.write_bytes(_whole(WebRanges(self.path), LARGEST_DOWNLOAD))
            yield here

    def beside(self, name: str) -> bytes | None:
        from urllib.parse import urljoin

        try:
            return _whole(WebRanges(urljoin(self.path, name)), LARGEST_BESIDE)
        except (OSError, ValueError):  # most files have none
            return None


class HubPlace:
    """Downloads go to the hub's cache, once; ranges are read without one, unless the file is there already."""

    def __init__(self, address: str) -> None:
        match = _HUB.fullmatch(address)
        if match is None:
            raise ValueError(
                f"{address[:200]!r} is not hf://owner/repo/path/of/the/file (or hf://datasets/owner/repo/...)"
            )
        kind, self.repo, self.revision, self.name = match.groups()
        self.kind = _HUB_KINDS[kind.strip("/")] if kind else "model"
        self.path = address

    @contextmanager
    def file(self) -> Iterator[Path]:
        yield self._download(self.name)

    def ranges(self) -> ByteRanges:
        import huggingface_hub as hub
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        cached = hub.try_to_load_from_cache(
            self.repo, self.name, revision=self.revision, repo_type=self.kind
        )
        if isinstance(cached, str):
            return LocalRanges(Path(cached))
        if hub.constants.HF_HUB_OFFLINE:
            raise FileNotFoundError(
                f"{self.path} is not in the cache, and the hub is switched off (HF_HUB_OFFLINE)"
            )
        url = hub.hf_hub_url(self.repo, self.name, revision=self.revision, repo_type=self.kind)
        return WebRanges(url, build_hf_headers())

    def beside(self, name: str) -> bytes | None:
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        parts = [*PurePosixPath(self.name).parent.parts]
        while name.startswith("../"):
            if not parts:
                return None
            name = name.removeprefix("../")
            parts.pop()
        try:
            return self._download("/".join([*parts, name])).read_bytes()
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return None

    def _download(self, name: str) -> Path:
        import huggingface_hub as hub

        try:
            return Path(
                hub.hf_hub_download(self.repo, name, revision=self.revision, repo_type=self.kind)
            )
        except hub.errors.EntryNotFoundError:
            raise
        except (
            hub.errors.HfHubHTTPError,
            hub.errors.LocalEntryNotFoundError,
            hub.errors.HFValidationError,
        ) as error:
            raise OSError(
                f"{self.path} cannot be fetched: {' '.join(str(error).split())[:300]}"
            ) from error


def place_of(source: str | Path) -> tuple[Place, str | None]:
    """The place that is meant, and what stands behind ``#``."""
    text = str(source)
    if isinstance(source, Path) or "://" not in text:
        if "#" not in text or isfile(text):
            return LocalPlace(Path(text)), None
        path, _, part = text.rpartition("#")
        return LocalPlace(Path(path)), part
    address, _, behind = text.partition("#")
    if address.startswith("hf://"):
        return HubPlace(address), behind or None
    if address.startswith(("http://", "https://")):
        return WebPlace(address), behind or None
    raise ValueError(
        f"{address[:200]!r} is no path, and no address that starts with hf://, https:// or http://"
    )


def _whole(ranges: ByteRanges, most: int) -> bytes:
    try:
        if ranges.size > most:
            raise ValueError(
                f"it has {ranges.size} bytes, and fetched whole are at most {most}; download it"
            )
        return ranges.read(0, ranges.size)
    finally:
        ranges.close()
