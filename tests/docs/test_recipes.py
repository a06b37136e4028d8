"""docs/recipes.md is true: each recipe does what plain hooks would do."""

from __future__ import annotations

import importlib.util
import re

import pytest
import torch

from steerfast import SteeringVector, contrast, extract_pairs, save_vector


@pytest.fixture(scope="module")
def given(page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    for name, seed in (("joy", 1), ("calm", 2)):
        rng = torch.Generator().manual_seed(seed)
        directions = {layer: torch.randn(32, generator=rng) for layer in (10, 11)}
        save_vector(
            SteeringVector(name, directions, {10: 40.0, 11: 50.0}), folder / f"{name}.safetensors"
        )
    return page("recipes.md", folder=folder)


def added(given, name, dose, layer=10):
    vector = given[name]
    return dose * vector.stream_norms[layer] * vector.at(layer) / vector.at(layer).norm()


def test_a_direction_is_gone_everywhere(given):
    unit = given["joy"].at(10) / given["joy"].at(10).norm()
    streams = given["states"][:-1]  # the last has been through the final norm
    assert len(streams) == 12
    assert max(float((state @ unit).abs().max()) for state in streams) < 1e-4
    with torch.no_grad():
        states = given["model"](**given["prompts"], output_hidden_states=True).hidden_states
    assert min(float((state @ unit).abs().max()) for state in states[:-1]) > 0.01
    plain = given["model"].generate(**given["prompts"], **given["options"])
    assert not torch.equal(given["without"], plain)


def test_several_behaviours(given, hooked):
    model = given["model"]
    joy, calm = added(given, "joy", 0.2), added(given, "calm", 0.2)
    wanted = (
        {10: torch.stack([joy, calm])},
        {10: joy + calm},
        {10: joy, 11: added(given, "calm", 0.2, 11)},
    )
    for additions, got in zip(wanted, given["results"], strict=True):
        with hooked(model, additions):
            assert torch.equal(got, model.generate(**given["prompts"], **given["options"]))
    with hooked(given["adapted"].base_model.model, wanted[1]):
        want = given["adapted"].generate(**given["prompts"], **given["options"])
    assert torch.equal(given["with_adapter"], want)


def test_a_strength_for_every_request(given, hooked):
    doses = torch.tensor(given["doses"])[:, None]
    with hooked(given["model"], {10: doses * added(given, "joy", 1.0)}):
        want = given["model"].generate(**given["rows"], **given["options"])
    assert torch.equal(given["ladder"], want)
    assert len({tuple(row) for row in want.tolist()}) > 2


def test_some_tokens_and_fading(given):
    model, prompts, joy = given["model"], given["prompts"], added(given, "joy", 1.0)
    width = prompts.input_ids.shape[1]

    def hook(module, args, output):
        t = hook.seen + torch.arange(output.shape[1]) - width  # tokens behind the prompt's end
        hook.seen += output.shape[1]
        fading = 0.3 * 0.5 ** (t.clamp(min=0) / 8)
        gains = torch.stack([fading, 0.2 * (t >= 0)])
        return output + gains[:, :, None] * joy

    hook.seen = 0
    registered = model.model.layers[10].register_forward_hook(hook)
    want = model.generate(**prompts, **given["options"])
    registered.remove()
    assert torch.equal(given["faded"], want)


def test_a_quantised_model(given):
    if importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    small, prompts = given["small"], given["prompts"]
    plain = small.generate(**prompts, **given["options"])
    assert torch.equal(given["quantised"][1], plain[1])
    assert not torch.equal(given["quantised"][0], plain[0])
    pairs = contrast.load("sentiment").train[
        :4
    ]  # a vector made on it is nearly that of the full model
    made = [
        extract_pairs(m, given["tokenizer"], pairs, name="v", position="mean").at(10)
        for m in (small, given["model"])
    ]
    assert torch.cosine_similarity(*made, dim=0) > 0.95


def test_seeing_what_happens(given):
    before, after = given["along"]
    assert after - before == pytest.approx(5.0, abs=1e-3)


def test_files(given):
    assert given["again"] == given["by_name"] == given["simultaneous"]
    text = (given.folder / "vectors/bold.json").read_text(encoding="utf-8")
    assert sorted(re.findall(r'"vector": "(\w+)"', text)) == ["calm", "joy"]
