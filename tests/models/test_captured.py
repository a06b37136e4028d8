"""A forward captured into a graph steers by what is in use when it is replayed, whatever that was at the capture.

As CUDA graphs where there is a GPU; everywhere as ``RecordedGraph``, which forgets what they forget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorded_graph import RecordedGraph
from tiny_llama import tiny_llama
from torch import Tensor
from transformers import StaticCache

from steerfast import (
    Condition,
    Plan,
    Positions,
    Schedule,
    SteerfastError,
    SteeringVector,
    Term,
    Test,
    attach,
    steer,
)

BATCH, TOKENS, HIDDEN, LAYERS = 2, 6, 32, 2
on_a_gpu = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    ],
)


class CudaGraph:
    """The same as ``RecordedGraph``, of CUDA."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.output = call()

    of = classmethod(lambda cls, call: cls(call))

    def replay(self) -> None:
        self._graph.replay()


class Tiny:
    """A model on the device of the graphs, its prompts at a fixed address, and how to run and capture it."""

    def __init__(self, device: str) -> None:
        self.model = tiny_llama(
            hidden=HIDDEN, layers=LAYERS, vocabulary=64, heads=2, spread=0.2, seed=1
        ).to(device)
        self.ids = self.prompts(2)
        self.graph_of = CudaGraph.of if device == "cuda" else RecordedGraph.of

    def prompts(self, seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        return torch.randint(1, 64, (BATCH, TOKENS), generator=rng).to(self.model.device)

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.model(self.ids, use_cache=False).logits

    def captured(self, call: Callable[[], Tensor] | None = None) -> Callable[[], Tensor]:
        """The forward as a graph, after one to warm up; what it returns replays it."""
        call = call or self.forward
        call()
        graph = self.graph_of(call)

        def replayed() -> Tensor:
            graph.replay()
            return graph.output.clone()

        return replayed


@pytest.fixture(params=["cpu", on_a_gpu])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return Tiny(request.param)


def vector(seed: int) -> SteeringVector:
    rng = torch.Generator().manual_seed(seed)
    return SteeringVector(
        f"v{seed}", {layer: torch.randn(HIDDEN, generator=rng) for layer in range(LAYERS)}
    )


PLAN, OTHER = steer(vector(1), 2.0), steer(vector(2), -3.0, select=Positions(2, 5))
READS = Plan((Term(vector(3), operator="ablate"), Term(vector(1), 1.0)))


def equal(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steered", [False, True], ids=["captured idle", "captured steered"])
def test_a_replay_steers_by_what_is_in_use_then(tiny: Tiny, steered: bool) -> None:
    plain = tiny.forward()
    with attach(tiny.model, programs=64) as handle:
        if steered:
            with handle.use(OTHER):
                replayed = tiny.captured()
        else:
            replayed = tiny.captured()
        equal(replayed(), plain)
        for plans in (PLAN, OTHER, READS, [PLAN, None], [None, READS]):
            with handle.use(plans):
                wanted = tiny.forward()
                assert not torch.allclose(wanted, plain, atol=1e-2)
                equal(replayed(), wanted)
                with handle.use(None):
                    equal(replayed(), plain)
                equal(replayed(), wanted)
            equal(replayed(), plain)
        with handle.use(PLAN) as use:
            use.change(OTHER)
            equal(replayed(), tiny.forward())


def test_replays_around_a_generation(tiny: Tiny) -> None:
    """``generate`` writes its own rows into the tensors that a captured forward reads, idle or steered."""
    plain = tiny.forward()
    ids = tiny.prompts(3)[:1]  # of one row: the graph has two
    behind = steer(vector(4), 2.0, select=Positions(1))
    with attach(tiny.model) as handle:
        tiny.model.generate(ids, max_new_tokens=2, do_sample=False)
        replayed = tiny.captured()  # its warm-up makes the generation's rows nobody's
        equal(replayed(), plain)
        with handle.use(behind):
            wanted = tiny.forward()
            tiny.model.generate(ids, max_new_tokens=2, do_sample=False)
            equal(replayed(), wanted)
            with handle.generating(ids) as loop:
                loop.step(TOKENS)
                tiny.model(ids)
            equal(replayed(), wanted)
        equal(replayed(), plain)


def test_prompts_end_where_use_says_or_rows_are_nan(tiny: Tiny) -> None:
    """A replay cannot raise what a forward would; nor does it steer as before, or not at all."""
    faded = Plan((Term(vector(1), 2.0),), schedule=Schedule.ramp(-3, 2, 0.0, 1.0))
    with attach(tiny.model) as handle:
        replayed = tiny.captured()
        with handle.use(faded, prompt_lengths=[4, 5]):
            equal(replayed(), tiny.forward())
        with handle.use(faded):
            assert replayed().isnan().all()
            tiny.forward()  # has its prompts at hand; the graph's may be others by now
            assert replayed().isnan().all()
        with handle.use(PLAN):
            equal(replayed(), tiny.forward())


def test_behind_a_cache_nobody_knows_what_is_prompt(tiny: Tiny) -> None:
    cache = StaticCache(config=tiny.model.config, max_cache_len=2 * TOKENS)
    with torch.no_grad():
        tiny.model(tiny.ids, past_key_values=cache)
    token = tiny.ids[:, :1].clone()
    mask = torch.ones(BATCH, TOKENS + 1, dtype=torch.int64, device=tiny.model.device)

    def decode() -> Tensor:
        for layer in cache.layers:
            layer.cumulative_length.fill_(TOKENS)  # the same step again
        with torch.no_grad():
            return tiny.model(token, attention_mask=mask, past_key_values=cache).logits

    prompts_only, behind = (steer(vector(1), 2.0, select=what) for what in ("prompt", "generated"))
    with attach(tiny.model) as handle:
        replayed = tiny.captured(decode)
        plain = replayed()
        for plan, steers in ((prompts_only, False), (behind, True)):
            with handle.use(plan, prompt_lengths=[TOKENS, TOKENS]):
                equal(replayed(), decode())
                assert torch.allclose(replayed(), plain, atol=1e-3) is not steers
        with handle.use(prompts_only):
            with pytest.raises(SteerfastError, match="where the prompt ends is not known"):
                decode()
            assert replayed().isnan().all()


@pytest.mark.parametrize("steered", [False, True], ids=["captured idle", "captured steered"])
def test_conditions_are_read_anew_by_every_replay(tiny: Tiny, steered: bool) -> None:
    key = vector(5)
    with torch.no_grad():
        streams = tiny.model(tiny.ids, output_hidden_states=True, use_cache=False).hidden_states[1]
    limit = float((streams[:, -1] @ (key.at(0) / key.at(0).norm()).to(streams.device)).mean())
    plan = Plan(
        (Term(vector(1), 3.0, layers=(1,)),),
        condition=Condition(Test("projection", key, 0, threshold=limit)),
    )
    known = {"prompt_lengths": [TOKENS, TOKENS]}
    with attach(tiny.model, measured=[("resid_post", 0)]) as handle:
        if steered:
            with handle.use(plan, **known):
                replayed = tiny.captured()
        else:
            replayed = tiny.captured()
        verdicts = set()
        with handle.use(plan, **known):
            for seed in (2, 6, 7, 8):  # other prompts, in the same place
                tiny.ids.copy_(tiny.prompts(seed))
                wanted = tiny.forward()
                equal(replayed(), wanted)
                with handle.use(None):
                    verdicts |= {
                        bool(moved) for moved in (tiny.forward() - wanted)[:, -1].abs().amax(-1) > 0
                    }
        assert verdicts == {False, True}


def test_a_condition_that_a_captured_forward_does_not_read_is_not_taken_for_unmet(
    tiny: Tiny,
) -> None:
    plan = Plan(
        (Term(vector(1), 3.0, layers=(1,)),),
        condition=Condition(Test("projection", vector(5), 0, threshold=-1e9)),
    )
    with attach(tiny.model) as handle:
        replayed = tiny.captured()
        with handle.use(plan, prompt_lengths=[TOKENS, TOKENS]):
            assert replayed()[:, -1].isnan().all()


def test_what_a_capture_cannot_hold_is_an_error_and_leaves_no_trace() -> None:
    tiny = Tiny("cpu")  # a GPU's stream would have to be told that its capture is void
    with attach(tiny.model) as handle:
        tiny.model.generate(tiny.ids, max_new_tokens=2, do_sample=False)
        with pytest.raises(SteerfastError, match="as a warm-up"):
            RecordedGraph.of(tiny.forward)
        with handle.use(PLAN):
            wanted = tiny.forward()
        layer = tiny.model.model.layers[0]
        embeddings = tiny.model.model.rotary_emb(
            torch.zeros(1, 1, HIDDEN), torch.zeros(1, 1).long()
        )
        with pytest.raises(SteerfastError, match="a layer by itself"):
            RecordedGraph.of(
                lambda: layer(torch.zeros(1, 1, HIDDEN), position_embeddings=embeddings)
            )
        with (
            handle.use(PLAN),
            handle.generating(tiny.ids) as loop,
            pytest.raises(SteerfastError, match="take the loop's step before the capture"),
        ):
            RecordedGraph.of(lambda: loop.step(TOKENS))
        replayed = tiny.captured()
        with handle.use(PLAN):
            equal(tiny.forward(), wanted)
            equal(replayed(), wanted)


def test_more_rows_than_there_are_seats() -> None:
    tiny = Tiny("cpu")
    tiny.ids = torch.randint(1, 64, (300, 2), generator=torch.Generator().manual_seed(0))
    with attach(tiny.model) as handle:
        with pytest.raises(SteerfastError, match="as a warm-up"):
            RecordedGraph.of(tiny.forward)
        replayed = tiny.captured()
        with handle.use([PLAN, None] * 150):
            equal(replayed(), tiny.forward())
        tiny.ids = torch.cat(
            [tiny.ids, tiny.ids]
        )  # the graph would go on to read what is no longer there
        with pytest.raises(SteerfastError, match="room for 512, and here are 600"):
            tiny.forward()


def test_cuda_graphs_go_around_the_ops_of_compiled_forwards() -> None:
    """Inductor captures what it compiles (mode="reduce-overhead"); what these find depends on more than their arguments."""
    if not hasattr(torch.Tag, "cudagraph_unsafe"):
        pytest.skip("this torch has no such tag")
    for op in ("route", "layer", "measure"):
        assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.steerfast, op).default.tags


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compiled_with_graphs_steers_by_what_is_in_use() -> None:
    tiny = Tiny("cuda")
    with attach(tiny.model, programs=64) as handle:
        compiled = torch.compile(tiny.model.forward, mode="reduce-overhead", dynamic=False)

        def forward() -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            with torch.no_grad():
                return compiled(tiny.ids, use_cache=False).logits.clone()

        plain = [forward() for _ in range(4)][-1]
        for plans in (PLAN, READS, [PLAN, None]):
            with handle.use(plans):
                wanted = tiny.forward()
                assert not torch.allclose(wanted, plain, atol=1e-2)
                torch.testing.assert_close(forward(), wanted, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(forward(), plain, rtol=1e-3, atol=1e-3)
