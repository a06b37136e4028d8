"""Text against code: lines, controls, corpora and pieces of as many tokens as asked for."""

from __future__ import annotations

import sys

import pytest
import torch

from steerfast import SteeringVector
from steerfast.experiments import broad, config, corpora
from steerfast.experiments.measure import Pieces, cut


def accuracy(top1):
    return {"top1": top1, "top10": 1.0, "loss": 1.0, "tokens": 100}


def test_text_kept_is_read_off_the_line_between_grid_points():
    points = [
        (0.0, accuracy(0.6), accuracy(0.8)),
        (1.0, accuracy(0.6), accuracy(0.76)),
        (2.0, accuracy(0.3), accuracy(0.36)),
        (3.0, accuracy(0.1), accuracy(0.2)),
    ]
    rows = {row["code"]: row for row in broad.text_kept(points)}
    # 90% of code is 0.72, a tenth of the way from 0.76 to 0.36; text there is a tenth of the way from 1 to 0.5.
    assert rows[0.9]["coefficient"] == pytest.approx(1.1)
    assert rows[0.9]["text"] == pytest.approx(0.95)
    assert rows[0.5]["coefficient"] == pytest.approx(1.9)
    assert rows[0.2]["text"] is None


def test_a_line_jumps_when_little_is_left_and_stops_when_nothing_is():
    setting = config.load_preset("llama-2-7b-chat").broad
    line = broad.Line("x", SteeringVector("v", {0: torch.ones(2)}), (0,))
    line.points.append((0.0, accuracy(0.6), accuracy(0.8)))
    line.advance(0.25, accuracy(0.5), accuracy(0.8 * 0.16), setting)
    assert line.next == 1
    line.advance(0.5, accuracy(0.5), accuracy(0.8 * 0.14), setting)
    assert line.next == 6
    line.advance(1.0, accuracy(0.5), accuracy(0.8 * 0.04), setting)
    assert line.next >= len(setting.coefficients)


def test_controls_keep_what_they_say():
    generator = torch.Generator().manual_seed(0)
    text = SteeringVector("text", {0: torch.randn(500, generator=generator)})
    code = SteeringVector("code", {0: torch.randn(500, generator=generator)})
    vector = broad.difference(text, code)
    torch.testing.assert_close(vector.at(0), text.at(0) - code.at(0))
    control = broad.permuted_control(text, code, 13)
    assert abs(float(torch.cosine_similarity(control.at(0), vector.at(0), dim=0))) < 0.2
    assert float(control.at(0).sum()) == pytest.approx(float(vector.at(0).sum()), abs=1e-3)
    matched = broad.with_norms_of(vector, control)
    assert float(matched.at(0).norm()) == pytest.approx(float(vector.at(0).norm()), rel=1e-6)
    assert float(torch.cosine_similarity(control.at(0), matched.at(0), dim=0)) > 0.999999


def test_corpora(tmp_path, monkeypatch):
    assert len(corpora.read_corpus("prose")) > 30
    assert "def " in corpora.read_corpus("stdlib", 5)[0]
    (tmp_path / "a.txt").write_text("short\n\n" + "word " * 60 + "\n\n" + "other " * 60)
    assert len(corpora.read_corpus(str(tmp_path / "a.txt"))) == 2
    (tmp_path / "b.txt").write_text("short")
    with pytest.raises(ValueError, match="no text of at least 200"):
        corpora.read_corpus(str(tmp_path / "b.txt"))
    first, rest = corpora.split_corpus("x", [str(number) for number in range(10)], 3, 13)
    assert len(first) == 3
    assert sorted(first + rest) == [str(number) for number in range(10)]
    with pytest.raises(ValueError, match="1 text"):
        corpora.split_corpus("x", ["a"], 3, 13)
    rows = [{"body": "y" * 300}] * 3
    fake = type(sys)("datasets")
    fake.load_dataset = lambda name, configuration, split, streaming: iter(rows)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert len(corpora.read_corpus("hub:some/set:main:test:body", 2)) == 2
    with pytest.raises(ValueError, match="no field 'text'; it has body"):
        corpora.read_corpus("hub:some/set")
    rows = [{"text": set_name * 100, "meta": {"set": set_name}} for set_name in ("Github", "Books")]
    (code,) = corpora.read_corpus("hub:some/set::train:text:meta.set=Github")
    (text,) = corpora.read_corpus("hub:some/set:::text:meta.set!=Github")
    assert (code[:6], text[:5]) == ("Github", "Books")
    with pytest.raises(ValueError, match=r"a row has no 'meta\.kind'"):
        corpora.read_corpus("hub:some/set:::text:meta.kind=x")
    with pytest.raises(ValueError, match="no condition on rows"):
        corpora.read_corpus("hub:some/set:::text:meta")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        corpora.read_corpus("hub:some/set")


def test_pieces_hold_as_many_tokens_as_asked_for(tiny):
    pieces = cut("x", tiny.tokenizer, ["a" * 30, "b" * 45], 20, 50)
    assert pieces.tokens == 50
    assert max(map(len, pieces.ids)) == 20
    assert cut("x", tiny.tokenizer, ["a" * 30], 20, 500).tokens < 32
    assert pieces.digest != Pieces("x", pieces.ids[:-1]).digest
    with pytest.raises(ValueError, match="no two tokens"):
        cut("x", tiny.tokenizer, [""], 20, 50)
