"""Pages under test: their blocks, a folder to run them in, and a small Llama that stands in for the reader's own."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny_llama import save_tiny_llama

DOCS = Path(__file__).parents[2] / "docs"
# What a block may use that `make setup` does not promise.
OPTIONAL = {"BitsAndBytesConfig": "bitsandbytes"}
CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


class Block(NamedTuple):
    """A fenced block. ``name``: the file that it shows, where the line before it is that name in backticks and a colon."""

    language: str
    text: str
    name: str | None


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = re.finditer(
        r"(?:^`([\w./-]+)`:\n\n)?^```(\w*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE
    )
    return [Block(language, text, name) for name, language, text in (m.groups() for m in found)]


def run_blocks(page: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Write the files that a page shows, then run its Python in order, in one namespace."""
    for number, block in enumerate(blocks(page.read_text(encoding="utf-8")), 1):
        if block.name is not None:
            Path(block.name).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            missing = [
                package
                for word, package in OPTIONAL.items()
                if word in block.text and importlib.util.find_spec(package) is None
            ]
            if not missing:
                exec(compile(block.text, f"{page.name}, block {number}", "exec"), given)
    return given


@pytest.fixture(scope="session")
def your_llama(tmp_path_factory):
    """A saved Llama (12 layers, D = 32) with a byte-level tokenizer that puts <s> in front, and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "your-llama"
    sizes = {"hidden": 32, "layers": 12, "vocabulary": 258, "heads": 2, "spread": 0.2}
    return save_tiny_llama(folder, CHAT, bos_in_front=True, eos_token_id=None, **sizes)


class Ran(dict[str, Any]):
    """The namespace that a page's Python left, what it printed, and the folder that it ran in."""

    said: str
    folder: Path


@pytest.fixture(scope="module")
def page(your_llama, tmp_path_factory):
    """run(name, **given): a page's Python, run in a folder that holds ``your-llama``."""

    def run(name: str, **given: Any) -> Ran:
        ran = Ran(given)
        ran.folder = given.pop("folder", None) or tmp_path_factory.mktemp("page")
        (ran.folder / "your-llama").symlink_to(your_llama)
        printed = io.StringIO()
        before = Path.cwd()
        os.chdir(ran.folder)
        try:
            with contextlib.redirect_stdout(printed):
                run_blocks(DOCS / name, ran)
        finally:
            os.chdir(before)
        ran.said = printed.getvalue()
        return ran

    return run


@contextlib.contextmanager
def hooked(model: Any, additions: Mapping[int, Any]) -> Iterator[None]:
    """Plain forward hooks: {layer: [rows, D] or [D]} is added to that layer's output, token by token."""

    def adding(added: Any) -> Any:
        return lambda module, args, output: (
            output + (added if added.ndim == 1 else added[:, None, :])
        )

    hooks = [
        model.model.layers[layer].register_forward_hook(adding(added))
        for layer, added in additions.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.fixture(name="hooked")
def _hooked():
    """The function above: what steerfast is compared with."""
    return hooked


@pytest.fixture(name="blocks_of")
def _blocks():
    """blocks(text), for tests that read pages without running them."""
    return blocks
