"""What a result says of where it was measured."""

from __future__ import annotations

import subprocess

import pytest

from harness import machine


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tree of its own, which is no checkout yet."""
    monkeypatch.delenv("STEERFAST_COMMIT", raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    return tmp_path


def git(tree, *arguments):
    name = ("-c", "user.name=somebody", "-c", "user.email=nobody@example.com")
    done = subprocess.run(
        ["git", "-C", tree, *name, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_commit_of_a_checkout(tree):
    (tree / "file").write_text("one")
    git(tree, "init", "-q")
    git(tree, "add", "file")
    git(tree, "commit", "-qm", "one")
    head = git(tree, "rev-parse", "--short", "HEAD")
    assert machine.setting(0)["commit"] == head
    (tree / "file").write_text("two")
    assert machine.setting(0)["commit"] == f"{head}-dirty"


def test_the_commit_of_a_copy_without_history_is_told(tree, monkeypatch):
    assert (
        machine.setting(0)["commit"] == "unknown"
    )  # and no line without one: it would stand for all such copies
    monkeypatch.setenv("STEERFAST_COMMIT", "7ef1085")
    assert machine.setting(0)["commit"] == "7ef1085"
