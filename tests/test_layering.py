"""Which module may import which: the ranks of docs/design.md, read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import steerfast

PACKAGE = Path(steerfast.__file__).parent
RANKS = {
    0: (
        *("errors", "fields", "vector", "sites", "operators", "selectors", "schedule", "condition"),
        *("term", "plan", "contrast"),
        *("records", "contribution", "reference"),
    ),
    1: (
        *(
            "programs",
            "lowering",
            "packing",
            "pool",
            "table",
            "itinerary",
            "io",
            "testing",
            "stream_norms",
        ),
    ),
    2: ("kernels", "_C"),
    3: ("backends", "arguments", "ops", "triton_ops", "router", "route", "verdicts"),
    4: ("models",),
    5: ("extract", "stream_means", "serving", "experiments", "texts", "environment"),
    6: ("cli", "plots", "figures", "report"),
}
RANK = {module: rank for rank, modules in RANKS.items() for module in modules}
# Third-party packages by the lowest rank that may use them, and whether only inside functions.
ALLOWED = {
    "torch": (0, False),
    "numpy": (1, False),
    "safetensors": (1, True),
    "triton": (2, False),
    "transformers": (4, True),
    "tqdm": (5, True),
    "filelock": (5, True),
    "datasets": (5, True),
    "ray": (5, True),
    "vllm": (5, True),
    "prometheus_client": (5, True),
    "fastapi": (5, False),
    "jinja2": (6, True),
    "typer": (6, False),
    "rich": (6, False),
    "matplotlib": (6, True),
}
SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imports(path):
    """(module, at the top of the file) for every import, those inside functions included. Imports for
    type checkers only count as inside."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            names = [
                f"{node.module}.{alias.name}" if node.module == "steerfast" else node.module
                for alias in node.names
            ]
        for name in names:
            yield name, node in tree.body


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in RANK, f"{own} has no rank; give it one here and in docs/design.md"
    for name, at_top in imports(path):
        head, _, rest = name.partition(".")
        assert head not in ("tests", "benchmarks", "kernels"), f"{path.name} imports {name}"
        if head == "steerfast":
            target = rest.partition(".")[0]
            if target in RANK:
                assert RANK[target] <= RANK[own], (
                    f"{own} (rank {RANK[own]}) imports {name} (rank {RANK[target]})"
                )
        elif head in ALLOWED:
            rank, inside_only = ALLOWED[head]
            assert RANK[own] >= rank, f"{own} (rank {RANK[own]}) may not use {head}"
            assert not (inside_only and at_top), f"{path.name} imports {head} at its top"


def test_the_check_sees_a_planted_violation(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("def f():\n    from steerfast.cli import app\n")
    assert list(imports(planted)) == [("steerfast.cli", False)]
    assert RANK["cli"] > RANK["vector"]


def test_only_backends_and_settings_read_the_environment():
    readers = {
        path.stem
        for path in SOURCES
        if "os.environ" in path.read_text() or "os.getenv" in path.read_text()
    }
    assert readers == {"backends", "settings"}
