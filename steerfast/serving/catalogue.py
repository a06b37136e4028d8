"""Catalogue: the vectors and plans that requests may name.

Filled from a folder (``joy.safetensors`` is the vector ``joy``, ``polite.json`` the plan ``polite``) and by
``put_vector`` / ``put_plan``. With a folder, what is put is kept there, and several front ends that share it see each other's
additions at the next request. No name of a request ever becomes a path before it was found valid.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import uuid
from pathlib import Path
from typing import NamedTuple, TypeVar

from steerfast.io.plans import load_plan, save_plan
from steerfast.io.vectors import load_vector, save_vector
from steerfast.plans.plan import Plan
from steerfast.plans.vector import SteeringVector

logger = logging.getLogger("steerfast")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SUFFIX = {SteeringVector: ".safetensors", Plan: ".json"}
_KIND = {suffix: kind for kind, suffix in _SUFFIX.items()}
Item = SteeringVector | Plan
_Item = TypeVar("_Item", SteeringVector, Plan)

Stamp = tuple[int, int, int]  # of a file: when it changed, its size, its inode


class _Kept(NamedTuple):
    item: Item
    stamp: Stamp | None  # of its file; None: in memory only


class Catalogue:
    """Vectors and plans by name; safe to use from several threads.

    folder: where they are kept, or "" for memory only. limit: how many of both together.
    """

    def __init__(self, folder: str = "", limit: int = 1024) -> None:
        self.folder = Path(folder) if folder else None
        self.limit = limit
        self.version = 0  # changes whenever a name may mean something else
        self._kept: dict[tuple[type, str], _Kept] = {}
        self._seen: dict[tuple[type, str], Stamp] | None = None
        self._lock = threading.RLock()
        self._read_folder(strict=True)

    def vectors(self) -> dict[str, SteeringVector]:
        """Every vector by name."""
        return self._all(SteeringVector)

    def plans(self) -> dict[str, Plan]:
        """Every plan by name."""
        return self._all(Plan)

    def vector(self, name: str) -> SteeringVector:
        """The vector of a name; ValueError for one that is not valid or not there."""
        return self._get(SteeringVector, name)

    def plan(self, name: str) -> Plan:
        """The plan of a name; ValueError for one that is not valid or not there."""
        return self._get(Plan, name)

    def put(self, name: str, item: Item) -> None:
        """Add a vector or a plan, or replace it: requests that are running keep what they began with.

        ValueError for a name that is not valid, or when the catalogue is full.
        """
        key = (type(item), valid_name(name))
        with self._lock:
            self.refresh()
            if key not in self._kept and len(self._kept) >= self.limit:
                raise ValueError(
                    f"the catalogue holds {self.limit} vectors and plans already; delete some, or raise "
                    "STEERFAST_MAX_VECTORS"
                )
            if self.folder is None:
                self._kept[key] = _Kept(item, None)
                self.version += 1
                return
            path = self.folder / f"{name}{_SUFFIX[key[0]]}"
            temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
            try:
                if isinstance(item, Plan):
                    save_plan(item, temporary)
                else:
                    save_vector(item, temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self.refresh()

    def remove(self, kind: type, name: str) -> None:
        """Forget a name; KeyError where there is none."""
        key = (kind, valid_name(name))
        with self._lock:
            self.refresh()
            if key not in self._kept:
                raise KeyError(name)
            if self.folder is None:
                del self._kept[key]
                self.version += 1
                return
            (self.folder / f"{name}{_SUFFIX[kind]}").unlink(missing_ok=True)
            self.refresh()

    def refresh(self) -> None:
        """Read what is new in the folder, and forget what is gone. A file that cannot be read is logged and left
        out (at the start it is an error). ValueError where the folder is gone."""
        self._read_folder(strict=False)

    def _read_folder(self, strict: bool) -> None:
        if self.folder is None:
            return
        with self._lock:
            found = self._files()
            if found == self._seen:
                return
            for key in [key for key in self._kept if key not in found]:
                del self._kept[key]
            for key, stamp in found.items():
                kept = self._kept.get(key)
                if kept is not None and kept.stamp == stamp:
                    continue
                path = self.folder / f"{key[1]}{_SUFFIX[key[0]]}"
                try:
                    item = load_plan(path) if key[0] is Plan else load_vector(path)
                except Exception as error:  # a file may hold anything
                    if strict:
                        raise ValueError(f"{path} cannot be read: {error!r}") from error
                    logger.exception("%s is left out", path)
                    self._kept.pop(key, None)
                    continue
                self._kept[key] = _Kept(item, stamp)
            self._seen = found
            self.version += 1

    def _files(self) -> dict[tuple[type, str], Stamp]:
        """Every file with a valid name, and what changes when it does."""
        assert self.folder is not None
        found: dict[tuple[type, str], Stamp] = {}
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    stem, dot, suffix = entry.name.rpartition(".")
                    kind = _KIND.get(dot + suffix)
                    if kind is not None and _NAME.fullmatch(stem):
                        found[kind, stem] = _stamp(entry)
        except OSError as error:
            raise ValueError(f"the folder of vectors cannot be read: {error.strerror}") from error
        return found

    def _all(self, kind: type[_Item]) -> dict[str, _Item]:
        with self._lock:
            kept = [(name, one.item) for (_, name), one in self._kept.items()]
        return {name: item for name, item in kept if isinstance(item, kind)}

    def _get(self, kind: type[_Item], name: str) -> _Item:
        key = (kind, valid_name(name))
        with self._lock:
            self.refresh()
            kept = self._kept.get(key)
        if kept is None or not isinstance(kept.item, kind):
            word = "vector" if kind is SteeringVector else "plan"
            raise ValueError(
                f"there is no {word} {name!r} here; register it, or ask which there are"
            )
        return kept.item


def _stamp(entry: os.DirEntry[str]) -> Stamp:
    """Of a file; a link that leads nowhere has one too, so that reading it is what fails."""
    try:
        about = entry.stat()
    except OSError:
        return 0, 0, entry.inode()
    return about.st_mtime_ns, about.st_size, about.st_ino


def valid_name(name: object) -> str:
    """The name itself; ValueError for one that could be more than a name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"a name is 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit; got {str(name)[:80]!r}"
        )
    return name
