"""Every decoder of transformers, tiny and random, against plain hooks: what ``docs/models.md`` says of it, tick by tick.

``make test`` takes some of each kind, ``make test-models`` all that the installed transformers knows.
"""

from __future__ import annotations

from pathlib import Path

import decoder_checks as checks
import pytest
import transformers
from decoder_checks import Case, NotOffered, case_of
from decoder_table import COLUMNS, HEAD, NOT, TICK, committed, described, every_decoder
from tiny_decoders import tiny_decoder

from steerfast import SteerfastError, attach

REPRESENTATIVES = [
    "llama",
    "mistral",
    "ministral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mixtral",
    "gpt_oss",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma3",
    "olmo2",
    "olmo3",
    "phi3",
    "smollm3",
    "granite",
    "glm4",
    "deepseek_v3",
    "qwen3_next",
    "olmo_hybrid",
    "gpt2",
    "cohere",
    "mamba",
    "zamba2",
    "gemma4_text",
    "opt",
    "bloom",
    "rwkv",
    "deepseek_v4",
]
DECODERS = [
    pytest.param(title, marks=() if title in REPRESENTATIVES else pytest.mark.every_decoder)
    for title in every_decoder()
]
CASES: dict[str, Case] = {}
PAGE = committed()


def case(title: str) -> Case:
    """Made once; skips what cannot be steered, of which another test asks."""
    if title not in CASES:
        name, overrides = every_decoder()[title]
        if len(PAGE[title]) == 2:
            pytest.skip(PAGE[title][1])
        CASES.clear()
        CASES[title] = case_of(tiny_decoder(name, **overrides))
    return CASES[title]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("title", DECODERS)
def test_is_what_hooks_make_of_it(title, column):
    """A tick of the table passes; a dash is refused, by this package or by transformers, and never something else."""
    here = case(title)
    said = PAGE[title][HEAD.index(column)]
    if said == TICK:
        COLUMNS[column](here)
        return
    assert said == NOT
    with pytest.raises(NotOffered):
        COLUMNS[column](here)


@pytest.mark.parametrize("title", DECODERS)
def test_no_site_where_there_is_no_stream(title):
    checks.closed(case(title))


@pytest.mark.parametrize("title", DECODERS)
def test_is_patched_as_the_page_says(title):
    name, overrides = every_decoder()[title]
    model = tiny_decoder(name, **overrides)
    if len(PAGE[title]) > 2:
        assert [type(checks.find_decoder(model).module).__name__, *described(model)] == PAGE[title][
            1 : HEAD.index("sites") + 1
        ]
        return
    before = {id(module): dict(vars(module)) for module in model.modules()}
    with pytest.raises(SteerfastError, match=r"cannot (steer|look)|found \d decoders"):
        attach(model)
    assert all(vars(module).keys() == before[id(module)].keys() for module in model.modules())


@pytest.mark.every_decoder
def test_the_page_has_every_decoder():
    assert list(PAGE) == list(every_decoder())
    text = Path(__file__).parents[2].joinpath("docs/models.md").read_text(encoding="utf-8")
    assert f"transformers {transformers.__version__} knows" in text


def test_at_least_so_many_are_fused():
    assert sum(row[2] == "all" for row in PAGE.values() if len(row) > 2) >= 90
