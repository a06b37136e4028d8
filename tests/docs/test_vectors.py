"""docs/vectors.md is true."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import steerfast
import steerfast.io
import steerfast.io.vectors

PAGE = Path(__file__).parents[2] / "docs/vectors.md"


def test_the_examples_run(page, hooked):
    given = page("vectors.md")
    text = PAGE.read_text(encoding="utf-8")
    assert given.said.splitlines()[0] == re.search(r"print\(joy\)  # (.*)", text)[1]
    model, joy, mine = given["model"], given["joy"], given["mine"]
    units = {layer: 2.0 * mine.at(layer) / mine.at(layer).norm() for layer in (10, 11)}
    with hooked(model, units):
        want = model(torch.tensor([[5, 6, 7]])).logits
    torch.testing.assert_close(given["steered"], want, rtol=1e-5, atol=1e-5)
    assert set(mine.stream_norms) == set(range(12))
    added = 0.1 * mine.stream_norms[10] * mine.at(10) / mine.at(10).norm()
    with hooked(model, {10: added}):
        want = model(torch.tensor([[5, 6, 7]])).logits
    with steerfast.attach(model) as handle, handle.use(given["gentle"]):
        got = model(torch.tensor([[5, 6, 7]])).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for layer in joy.layers:
        calm = given["calm"].at(layer)
        assert abs(given["pure"].at(layer) @ calm / calm.norm()) < 1e-4
        assert torch.equal(given["mean"].at(layer), (joy.at(layer) + calm) / 2)
    assert given["same"] == joy
    assert given["theirs"].layers == tuple(range(12))
    assert given["one"].layers == (3,)
    assert "direction.N is added to the output of layer N" in given.said
    project = model.model.layers[5].self_attn.o_proj
    hook = project.register_forward_pre_hook(
        lambda module, args: (args[0] + 2.0 * given["heads"][5].reshape(-1),)
    )
    want = model(torch.tensor([[5, 6, 7]])).logits
    hook.remove()
    torch.testing.assert_close(given["by_heads"], want, rtol=1e-5, atol=1e-5)


def test_its_table_has_functions_that_there_are():
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w+\(.*?)\| `(steerfast[\w.]*)` \|", text, re.MULTILINE)
    assert len(rows) == 7
    for names, home in rows:
        module = {m.__name__: m for m in (steerfast, steerfast.io, steerfast.io.vectors)}[home]
        for name in re.findall(r"`(\w+)\(", names):
            assert callable(getattr(module, name)), name
