"""The shipped contrast sets: enough pairs, varied, none of the held-out ones used for extraction."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from steerfast import contrast


def test_there_are_enough_sets():
    assert len(contrast.shipped()) >= 4


@pytest.mark.parametrize("name", contrast.shipped())
def test_a_set_is_large_varied_and_split(name):
    each = contrast.load(name)
    assert each.name == name
    assert all((each.positive, each.negative, each.description))
    assert len(each.train) >= 60
    assert len(each.held_out) >= 12
    pairs = [*each.train, *each.held_out]
    texts = [text for pair in pairs for text in (pair.positive, pair.negative)]
    assert len(set(texts)) == len(texts)
    assert len({pair.prompt for pair in pairs}) == len(pairs)
    openings = Counter(" ".join(pair.prompt.split()[:3]).lower() for pair in pairs)
    assert openings.most_common(1)[0][1] <= 2, "one template, repeated"
    for pair in pairs:
        assert pair.prompt == pair.prompt.rstrip()
        assert pair.positive[0] == pair.negative[0]
        assert pair.positive[0] in " \n"


def test_files_of_ones_own(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"pairs": [{"prompt": "a", "positive": " b", "negative": " c"}]}))
    mine = contrast.load(path)
    assert (mine.name, len(mine.train), len(mine.held_out)) == ("mine", 1, 0)
    path.write_text(json.dumps({"pairs": [{"prompt": "a", "positive": " b"}]}))
    with pytest.raises(ValueError, match=r"pair 1 .* lacks 'negative'"):
        contrast.load(path)
    path.write_text(json.dumps({"pairs": []}))
    with pytest.raises(ValueError, match="no pairs"):
        contrast.load(path)
    with pytest.raises(ValueError, match="one of certainty, code"):
        contrast.load("absent")
