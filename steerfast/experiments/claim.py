"""A study's folder is its own: what it holds is said in ``study.json``, and another study is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steerfast.io.strict import as_object, read
from steerfast.io.whole import written_whole


def check_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """ValueError where the folder is that of a study with another kind, configuration, model or data.

    identity: what is known of this one; what is not known yet is not compared. A study that was begun anywhere with the
    same identity goes on.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, but a study has a folder; give another with --out")
    held = _held(folder)
    wanted = json.loads(json.dumps(identity))
    others = [name for name in wanted if name in held and held[name] != wanted[name]]
    if others:
        raise ValueError(
            f"{folder} is the folder of another study: its {' and '.join(others)} "
            f"{'is' if len(others) == 1 else 'are'} not this one's ({_differences(held, wanted, others)}); give another "
            "folder with --out, or remove that one"
        )


def claim_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """``check_folder``, then ``study.json`` with the whole identity, so that no other study comes in between."""
    from filelock import FileLock

    (folder / "locks").mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "locks" / "study.lock"):
        check_folder(folder, identity)
        if not (folder / "study.json").exists():
            with written_whole(folder / "study.json") as unfinished:
                unfinished.write_text(
                    json.dumps(identity, indent=1, sort_keys=True) + "\n", "utf-8"
                )


def _held(folder: Path) -> dict[str, Any]:
    """The identity of the study that is in a folder, as far as its files say."""
    if (folder / "study.json").is_file():
        return as_object(read(folder / "study.json", "a study's identity"), "study.json")
    if (folder / "results.json").is_file():
        results = as_object(read(folder / "results.json", "a study's results"), "results.json")
        config = as_object(results.get("config"), "'config' of results.json")
        model = as_object(results.get("model"), "'model' of results.json")
        return {"kind": results.get("kind"), "config": own(config), "model": model.get("digest")}
    return {}


def own(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration tells a study from others: not the paths of corpora, whose texts do."""
    return {name: value for name, value in config.items() if name not in ("text", "code")}


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any], names: list[str]) -> str:
    """The first few, short enough for an error."""
    found = []
    for name in names:
        one, other = held[name], wanted[name]
        if isinstance(one, dict) and isinstance(other, dict):
            for key in sorted({*one, *other}):
                if one.get(key) != other.get(key):
                    found.append(
                        f"{name}.{key}: {one.get(key)!r:.40} there, {other.get(key)!r:.40} here"
                    )
        else:
            found.append(f"{name}: {one!r:.40} there, {other!r:.40} here")
    return "; ".join(found[:3]) + ("; ..." if len(found) > 3 else "")
