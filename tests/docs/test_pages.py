"""All pages: their width, their links, their commands, and that a test runs their Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from steerfast.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
LINKED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
# Their code needs engines and servers: tests/vllm runs it.
ELSEWHERE = {"serving.md"}
# Laid out by what measures and by who serves, not by hand.
WIDE = {"benchmarks.md"}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def named(path):
    return str(path.relative_to(ROOT))


def prose(page):
    """A page's text without its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page):
    """The anchors that GitHub gives to a page's headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        words = re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading).strip().lower()
        found.append(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", LINKED, ids=named)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(prose(page)):
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{named(page)} links to {target}"
        assert path.is_relative_to(ROOT), f"{named(page)} links out of the repository: {target}"
        assert not anchor or anchor in anchors(path), f"{named(page)} links to {target}"


def test_every_page_is_reached_from_the_index():
    reached, waiting = set(), [DOCS / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md" or not page.is_relative_to(DOCS):
            continue
        reached.add(page)
        for target in LINK.findall(prose(page)):
            if not re.match(r"https?://|mailto:|#", target):
                waiting.append((page.parent / target.partition("#")[0]).resolve())
    assert sorted(reached) == PAGES


def test_the_index_names_every_page_and_script():
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    listed = [target for target in LINK.findall(text) if "/" not in target]
    assert set(listed) == {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    scripts = {target for target in LINK.findall(text) if target.startswith("examples/")}
    assert scripts == {f"examples/{script.name}" for script in (DOCS / "examples").glob("*.py")}


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in WIDE], ids=named)
def test_a_page_can_be_read_on_a_narrow_screen(page):
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("|"):
            assert line.count(" | ") <= 5, f"line {number} has more than six columns"
        else:
            assert len(line) <= 120, f"line {number} is {len(line)} characters wide"


def test_every_page_with_python_is_run_by_a_test(blocks_of):
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("*.py"))
    for page in DOCS.glob("*.md"):
        if any(block.language == "python" for block in blocks_of(page.read_text("utf-8"))):
            assert page.name in ELSEWHERE or f'page("{page.name}"' in tests, page.name


def commands(text, blocks_of):
    """[words] of every `steerfast ...` in a page's blocks without a language."""
    found = []
    for block in blocks_of(text):
        for line in block.text.replace("\\\n", " ").splitlines() if not block.language else ():
            if re.match(r"(\S+/)?steerfast ", line):
                found.append(shlex.split(line, comments=True)[1:])
    return found


def parsed(words):
    """The path of the command that the words name; an error of click for a name, option or number that does not fit."""
    command, path = typer.main.get_command(app), []
    while isinstance(command, click.Group) or hasattr(command, "commands"):
        path.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    command.make_context(" ".join(path), list(words))
    return " ".join(path)


@pytest.mark.parametrize("page", LINKED, ids=named)
def test_every_command_is_one(page, blocks_of):
    for words in commands(page.read_text(encoding="utf-8"), blocks_of):
        assert parsed(words)


def test_what_is_no_command_is_found_out():
    with pytest.raises(KeyError):
        parsed(["extrude"])
    for wrong in (["extract", "--pears", "x", "-o", "y"], ["extract"], ["tune", "--budget", "a"]):
        with pytest.raises(Exception, match=r"(?i)no such option|missing|invalid|valid number"):
            parsed(wrong)


def test_the_command_line_page_shows_every_command(blocks_of):
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    shown = {parsed(words) for words in commands(text, blocks_of)}
    root = typer.main.get_command(app)
    known = {
        f"{name} {sub}" if sub else name
        for name, command in root.commands.items()
        for sub in getattr(command, "commands", None) or [""]
    }
    assert shown == known
