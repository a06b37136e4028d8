"""Catalogue: the vectors and plans that requests may name.

Filled from a folder (``joy.safetensors`` is the vector ``joy``, ``polite.json`` the plan ``polite``) and by
``put_vector`` / ``put_plan``. With a folder, what is put is kept there, and several front ends that share it see each other's
additions at the next request. No name of a request ever becomes a path before it was found valid.
"""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path
from typing import NamedTuple

from steerfast.io.plans import load_plan, save_plan
from steerfast.io.vectors import load_vector, save_vector
from steerfast.plan import Plan
from steerfast.vector import SteeringVector

logger = logging.getLogger("steerfast")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SUFFIX = {SteeringVector: ".safetensors", Plan: ".json"}
Item = SteeringVector | Plan


class _Kept(NamedTuple):
    item: Item
    stamp: tuple[int, int] | None  # of its file: changed, size; None: not from a file


class Catalogue:
    """Vectors and plans by name; safe to use from several threads.

    folder: where they are kept, or "" for memory only. limit: how many of both together.
    """

    def __init__(self, folder: str = "", limit: int = 1024) -> None:
        self.folder = Path(folder) if folder else None
        self.limit = limit
        self.version = 0  # changes whenever a name may mean something else
        self._kept: dict[tuple[type, str], _Kept] = {}
        self._seen = -1
        self._lock = threading.RLock()
        self._read_folder(strict=True)

    def vectors(self) -> dict[str, SteeringVector]:
        """Every vector by name."""
        with self._lock:
            return {
                name: one.item
                for (_, name), one in self._kept.items()
                if isinstance(one.item, SteeringVector)
            }

    def plans(self) -> dict[str, Plan]:
        """Every plan by name."""
        with self._lock:
            return {
                name: one.item
                for (_, name), one in self._kept.items()
                if isinstance(one.item, Plan)
            }

    def vector(self, name: str) -> SteeringVector:
        """The vector of a name; ValueError for one that is not valid or not there."""
        item = self._get(SteeringVector, name)
        assert isinstance(item, SteeringVector)
        return item

    def plan(self, name: str) -> Plan:
        """The plan of a name; ValueError for one that is not valid or not there."""
        item = self._get(Plan, name)
        assert isinstance(item, Plan)
        return item

    def put(self, name: str, item: Item) -> None:
        """Add a vector or a plan, or replace it: requests that are running keep what they began with.

        ValueError for a name that is not valid, or when the catalogue is full.
        """
        key = (type(item), valid_name(name))
        with self._lock:
            if key not in self._kept and len(self._kept) >= self.limit:
                raise ValueError(
                    f"the catalogue holds {self.limit} vectors and plans already; delete some, or raise "
                    "STEERFAST_MAX_VECTORS"
                )
            if self.folder is not None:
                path = self._path(key)
                temporary = path.with_name(f".{path.name}.new")
                if isinstance(item, Plan):
                    save_plan(item, temporary)
                else:
                    save_vector(item, temporary)
                temporary.replace(path)
            self._kept[key] = _Kept(item, self._stamp(key))
            self.version += 1

    def remove(self, kind: type, name: str) -> None:
        """Forget a name; KeyError where there is none."""
        key = (kind, valid_name(name))
        with self._lock:
            if key not in self._kept:
                raise KeyError(name)
            del self._kept[key]
            if self.folder is not None:
                self._path(key).unlink(missing_ok=True)
            self.version += 1

    def refresh(self) -> None:
        """Read what is new in the folder, and forget what is gone. A file that cannot be read is logged and left
        out (at the start it is an error)."""
        self._read_folder(strict=False)

    def _read_folder(self, strict: bool) -> None:
        if self.folder is None:
            return
        with self._lock:
            seen = self.folder.stat().st_mtime_ns
            if seen == self._seen:
                return
            there = {
                (kind, path.stem): path
                for kind, suffix in _SUFFIX.items()
                for path in sorted(self.folder.glob(f"*{suffix}"))
                if _NAME.fullmatch(path.stem)
            }
            for key in [key for key, one in self._kept.items() if one.stamp and key not in there]:
                del self._kept[key]
            # Vectors first: plans may name them.
            for key, path in there.items():
                kept, stamp = self._kept.get(key), self._stamp(key)
                if kept is not None and kept.stamp == stamp:
                    continue
                try:
                    item = load_plan(path) if key[0] is Plan else load_vector(path)
                except (OSError, ValueError):
                    if strict:
                        raise
                    logger.exception("%s is left out", path)
                    continue
                self._kept[key] = _Kept(item, stamp)
            self._seen = seen
            self.version += 1

    def _get(self, kind: type, name: str) -> Item:
        key = (kind, valid_name(name))
        with self._lock:
            self.refresh()
            kept = self._kept.get(key)
        if kept is None:
            word = "vector" if kind is SteeringVector else "plan"
            raise ValueError(
                f"there is no {word} {name!r} here; register it, or ask which there are"
            )
        return kept.item

    def _path(self, key: tuple[type, str]) -> Path:
        assert self.folder is not None
        return self.folder / f"{key[1]}{_SUFFIX[key[0]]}"

    def _stamp(self, key: tuple[type, str]) -> tuple[int, int] | None:
        if self.folder is None or not self._path(key).is_file():
            return None
        about = self._path(key).stat()
        return about.st_mtime_ns, about.st_size


def valid_name(name: object) -> str:
    """The name itself; ValueError for one that could be more than a name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"a name is 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit; got {str(name)[:80]!r}"
        )
    return name
