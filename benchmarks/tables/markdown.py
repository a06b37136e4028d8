"""A table of Markdown, and the line below it that says where its figures come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.results import Line


def caption(lines: Iterable[Line]) -> str:
    """Device, versions, commit and date of a table's lines, one clause for each that differs."""
    said: dict[str, None] = {}
    for line in lines:
        versions = line["versions"]
        more = f", vLLM {versions['vllm']}" if "vllm" in versions else ""
        more += f", CUDA {versions['cuda']}" if "cuda" in versions else ""
        said[
            f"{line['device']}; torch {versions['torch']}, transformers {versions['transformers']}{more}; "
            f"commit {line['commit']}, {line['date'][:10]}"
        ] = None
    return " · ".join(said)


def table(head: Sequence[str], rows: Iterable[Sequence[object]], note: str) -> str:
    """A table of Markdown and a note below."""
    return f"{grid(head, rows)}\n\n{note}"


def grid(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)
