"""The study of pruned models: what pruning removes, and the study from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from study_runs import invoke

from steerfast import SteeringVector, attach, contrast
from steerfast.experiments import sparsity
from steerfast.experiments.dose import log_probability_differences, pair_batch
from steerfast.experiments.measure import Laboratory
from steerfast.experiments.schemes import individual


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_pruning_removes_the_smallest_and_nothing_else(tiny, share):
    for pattern in ("unstructured", "of 4"):
        twin = sparsity.pruned(tiny.model, sparsity.Pruning(pattern, share))
        before = tiny.model.model.layers[1].mlp.up_proj.weight
        after = twin.model.layers[1].mlp.up_proj.weight
        kept = after != 0
        assert torch.equal(after[kept], before[kept])
        if pattern == "of 4":
            groups = kept.view(len(kept), -1, 4)
            assert (groups.sum(-1) == 4 - 4 * share).all()
            sizes = before.abs().view(len(kept), -1, 4)
            lost = sizes.masked_fill(groups, 0).amax(-1)
            assert (lost <= sizes.masked_fill(~groups, torch.inf).amin(-1)).all()
        else:
            assert float((~kept).float().mean()) == pytest.approx(share, abs=1e-3)
            assert before[~kept].abs().max() <= before[kept].abs().min()
        assert torch.equal(twin.model.embed_tokens.weight, tiny.model.model.embed_tokens.weight)
        assert torch.equal(twin.lm_head.weight, tiny.model.lm_head.weight)


def test_pruning_refuses_what_it_does_not_know(tiny):
    with pytest.raises(ValueError, match="'of 4' with quarters"):
        sparsity.pruned(tiny.model, sparsity.Pruning("of 4", 0.3))


def test_sparsity_from_the_command_line(tiny_folder, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(
        'model = "tiny"\ndtype = "float32"\n[sparsity]\ndirections = ["sentiment"]\nlayer = 1\n'
        "coefficients = [-0.2, 0.2]\nshares = [0.5]\ntax_tokens = 100\n"
    )
    out = tmp_path / "study"
    facts = invoke(
        *("study", "sparsity", "--preset", path, "--model", tiny_folder, "--out", out, "--json")
    )
    results = json.loads(Path(facts["results"]).read_text())
    names = [model["name"] for model in results["models"]]
    assert names == ["dense", "50% unstructured", "2:4"]
    dense = results["models"][0]
    assert dense["cosine"]["sentiment"] == pytest.approx(1.0)
    assert dense["slope"] == dense["slope_of_dense_vector"]
    assert results["models"][2]["zeros"] == pytest.approx(0.5, abs=1e-6)
    assert Path(facts["report"]).read_text().count("<svg") == 2


def test_pairs_are_measured_as_the_dose_response_does(tiny):
    """Against ``log_probability_differences``, which sums over the continuations' tokens only."""
    pairs = contrast.load("sentiment").held_out[:4]
    vector = SteeringVector("v", {1: torch.ones(64)})
    plan = individual(vector, 1, 0.5)
    (result,) = Laboratory(tiny).pairs([plan], pairs).run()
    with attach(tiny.model) as handle:
        expected = log_probability_differences(handle, pair_batch(tiny.tokenizer, pairs), plan)
    assert result["log_odds"] == pytest.approx(expected.tolist(), abs=1e-3)
