"""Peers' environments: pinned, on one stack, and those under the AGPL in one of their own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from peers import environments, registry

FOLDER = Path(environments.__file__).parent


@pytest.mark.parametrize("name", environments.NAMES)
def test_every_requirement_is_pinned(name):
    lines = (FOLDER / "requirements" / f"{name}.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    names = []
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][\w.]*", pin), pin
        names.append(pin.partition("==")[0].lower().replace("_", "-"))
    assert len(set(names)) == len(names)
    # What an environment sees below is the same for all; none may replace the stack that is measured.
    assert not {"torch", "transformers", "torchvision", "tokenizers", "triton"} & set(names)
    for peer in registry.peers_of(name).values():
        assert not peer.package or peer.package in names


def test_every_peer_has_an_environment_and_the_agpl_one_of_its_own():
    assert set(environments.NAMES) == {peer.environment for peer in registry.PEERS.values()}
    for peer in registry.PEERS.values():
        assert "AGPL" not in peer.licence or peer.environment == "apart"
        assert peer.operations <= {"add", "preserve", "ablate", "add_from"}


def test_the_package_imports_no_peer():
    """Two of them are under the AGPL: benchmarks alone may load them, in their own environment."""
    import steerfast

    names = {peer.package.replace("-", "_") for peer in registry.PEERS.values() if peer.package}
    assert {"saklas", "interlens"} <= names
    package = Path(steerfast.__file__).parent
    for path in package.rglob("*.py"):
        found = re.findall(r"^\s*(?:from|import)\s+(\w+)", path.read_text(), flags=re.MULTILINE)
        assert not names & set(found), path
    for path in FOLDER.parent.rglob("*.py"):
        if path.parent != FOLDER:
            found = re.findall(r"^\s*(?:from|import)\s+(\w+)", path.read_text(), flags=re.MULTILINE)
            assert not {"saklas", "interlens"} & set(found), path
