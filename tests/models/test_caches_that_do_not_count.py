"""A cache that holds a state and no count: positions are right, or asked for, and never guessed."""

from __future__ import annotations

import pytest
import torch
from tiny_decoders import tiny_decoder

from steerfast import Positions, SteerfastError, SteeringVector, attach, steer

VECTOR = SteeringVector("v", {1: torch.ones(64)})


@pytest.mark.parametrize(("name", "cache"), [("mamba", "cache_params"), ("rwkv", "state")])
@torch.no_grad()
def test_a_forward_behind_it_is_steered_where_position_does_not_matter(name, cache):
    model = tiny_decoder(name)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with attach(model) as handle:
        with handle.use(steer(VECTOR, 0.5)):
            whole = model(input_ids=ids).logits[:, -1]
            left = model(input_ids=ids[:, :5], use_cache=True)[cache]
            last = model(input_ids=ids[:, 5:], use_cache=True, **{cache: left}).logits[:, -1]
            torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-5)
        with handle.use(steer(VECTOR, 0.5, select=Positions(5, 6))):
            left = model(input_ids=ids[:, :5], use_cache=True)[cache]
            with pytest.raises(SteerfastError, match="does not say how many tokens it holds"):
                model(input_ids=ids[:, 5:], use_cache=True, **{cache: left})
