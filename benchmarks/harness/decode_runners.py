"""Ways of decoding one token for every row of a batch: stock, forward hooks, patched, steered; eager, compiled, captured, both.

All share one set of weights. ``Runner.step`` is what a decoding loop does between two samplings.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from gpu.graphs import captured
from harness.timing import interleave
from steerfast.experiments.decode_speed import twin
from steerfast.models import attach, find_decoder
from steerfast.ops.implementations import implementation
from steerfast.plans.operators import Operator
from steerfast.plans.plan import Plan
from steerfast.plans.sites import site_index
from steerfast.plans.term import Term
from steerfast.plans.vector import SteeringVector

BANK = 64  # vectors that the plans share
MODES = ("eager", "compiled", "graph", "compiled-graph")
SPREADS = ("same", "distinct", "zipf")


class Runner:
    """One way of decoding. prompt: [B, P]; room: how many tokens follow, in eager mode.

    But for ``eager`` every step decodes the same position of a static cache: compiled, as one CUDA graph, or both. programs:
    as ``attach`` takes it; 0: no plan reads the stream, and a kernel runs that could not.
    """

    def __init__(
        self,
        model: Any,
        prompt: Tensor,
        mode: str,
        *,
        plans: list[Plan | None] | None = None,
        attached: bool = False,
        hooks: bool = False,
        programs: int | None = None,
        compiler: str = "inductor",
    ) -> None:
        self.model, self.mode, self._compiler = twin(model), mode, compiler
        self._open = ExitStack()
        self._loop: Any = None
        self._prompt = prompt
        if hooks:
            assert plans is not None
            _hook_every_layer(self.model, plans)
        elif attached:
            room = {} if programs is None else {"programs": programs}
            handle = attach(self.model, slots=max(64, 2 * len(prompt)), **room)
            self._open.enter_context(handle.use(plans))
            self._loop = self._open.enter_context(handle.generating(prompt))
        self._run = self._prepared()

    def step(self, tokens: Tensor) -> Tensor:
        """Logits of the token behind ``tokens`` [B, 1]."""
        self._route(1, self._seen)
        logits = self._run(tokens)
        if self.mode == "eager":
            self._seen += 1
        return logits

    def close(self) -> None:
        self._open.close()

    def _prepared(self) -> Callable[[Tensor], Tensor]:
        from transformers import DynamicCache, StaticCache

        batch, length = self._prompt.shape
        config, device = self.model.config, self._prompt.device
        eager = self.mode == "eager"
        cache = (
            DynamicCache(config=config)
            if eager
            else StaticCache(config=config, max_cache_len=_rounded(length + 1))
        )
        # Said even though nothing is padded: asked without a mask, a model may attend by another path outside of a capture than in
        # it (releases of transformers differ in when they leave masks out).
        mask = torch.ones(batch, length + 1, dtype=torch.int64, device=device)
        self._route(length)
        self.model(
            self._prompt, attention_mask=mask[:, :length], past_key_values=cache, use_cache=True
        )
        self._seen = length
        if eager:
            return lambda tokens: self.model(tokens, past_key_values=cache, use_cache=True).logits

        at = torch.full((batch, 1), length, device=device)
        lengths = [layer.cumulative_length for layer in cache.layers]
        forward = self.model.forward
        if self.mode.startswith("compiled"):
            # Every runner is a compilation of the same code: as many as there are, and none taken for one without its hooks.
            torch._dynamo.config.recompile_limit = 256
            torch._dynamo.config.skip_nnmodule_hook_guards = False
            forward = torch.compile(forward, fullgraph=True, dynamic=False, backend=self._compiler)

        def again(tokens: Tensor) -> Tensor:
            logits: Tensor = forward(
                tokens, attention_mask=mask, past_key_values=cache, position_ids=at
            ).logits
            torch._foreach_sub_(lengths, 1)
            return logits

        return self._captured(again) if self.mode.endswith("graph") else again

    def _captured(self, again: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The step as one graph."""
        held = torch.zeros_like(self._prompt[:, :1])
        graph, logits = captured(
            lambda: again(held), before=lambda: self._route(1, self._seen), warm=3
        )

        def replay(tokens: Tensor) -> Tensor:
            held.copy_(tokens)
            graph.replay()
            return logits

        return replay

    def _route(self, length: int, seen: int | None = None) -> None:
        if self._loop is not None:
            self._loop.step(length, seen)


def check(logits: dict[str, Tensor]) -> None:
    """What is compared does the same: all that steer one thing, all that do not another. AssertionError where a capture or a
    compiler has lost the steering, whose time would be that of nothing.

    logits: of the first step, by variant. Far apart is judged by how far steering takes them; dtypes round before that."""
    if "steered" not in logits or "stock" not in logits:
        return
    steered, stock = logits["steered"].double(), logits["stock"].double()
    moved = (steered - stock).norm()
    for name, found in logits.items():
        wanted = stock if name in ("stock", "patched", "patched again") else steered
        off = (found.double() - wanted).norm() / moved
        assert off < 0.5, f"{name} is {float(off):.2f} of the way to the other kind of logits"


def _rounded(length: int) -> int:
    return -(-length // 64) * 64


def bank(model: Any, seed: int = 0) -> list[SteeringVector]:
    """Random directions at the output of every layer, 1% of a unit in each element."""
    decoder = find_decoder(model)
    generator = torch.Generator().manual_seed(seed)
    shape = decoder.config.num_hidden_layers, decoder.config.hidden_size
    drawn = [0.01 * torch.randn(shape, generator=generator) for _ in range(BANK)]
    return [
        SteeringVector(f"random {index}", dict(enumerate(rows.unbind())))
        for index, rows in enumerate(drawn)
    ]


def plans_for(
    vectors: list[SteeringVector],
    batch: int,
    terms: int,
    spread: str,
    operator: Operator,
    seed: int,
) -> list[Plan | None]:
    """A plan of ``terms`` vectors on all layers for each row: one for all, all distinct, or zipf."""
    rng = random.Random(seed)

    def one() -> Plan:
        chosen = rng.sample(vectors, terms)
        dial = {"target": 0.0} if operator == "clamp" else {}
        return Plan(
            tuple(
                Term(
                    vector,
                    1.0 if operator == "clamp" else rng.uniform(0.5, 1.5),
                    operator=operator,
                    **dial,  # type: ignore[arg-type]
                )
                for vector in chosen
            )
        )

    distinct = [one() for _ in range({"same": 1}.get(spread, batch))]
    if spread == "zipf":
        weights = [1 / (rank + 1) for rank in range(batch)]
        return list(rng.choices(distinct, weights, k=batch))
    return [distinct[row % len(distinct)] for row in range(batch)]


def _hook_every_layer(model: Any, plans: list[Plan | None]) -> None:
    """What one writes without a library: a hook on each layer that adds every vector to its rows."""
    decoder = find_decoder(model)
    weight = next(decoder.layers[0].parameters())
    terms = max(len(plan.terms) for plan in plans if plan is not None)
    for index, layer in enumerate(decoder.layers):
        added = []
        for k in range(terms):
            rows = [
                plan.terms[k].coefficient * plan.terms[k].vector.at(index)
                for plan in plans
                if plan is not None
            ]
            added.append(torch.stack(rows)[:, None].to(weight))

        def hook(module: Any, inputs: Any, output: Tensor, added: list[Tensor] = added) -> Tensor:
            for one in added:
                output = output + one
            return output

        layer.register_forward_hook(hook)


def op_times(model: Any, batch: int, plans: list[Plan | None]) -> dict[str, dict[str, float]]:
    """Microseconds of the fused op of a middle layer, for the rows of one decoding step, steered or not.

    Times the number of layers this is what steering adds to a step, far less noisily than steps are.
    """
    held = twin(model)
    prompt = torch.ones(batch, 2, dtype=torch.int64)
    handle = attach(held, slots=max(64, 2 * batch))
    ops = implementation(handle.backend)
    layer = model.config.num_hidden_layers // 2
    norm = held.model.layers[layer].input_layernorm
    x, residual = torch.randn(2, batch, 1, model.config.hidden_size).to(model.dtype).unbind(0)

    def op(steering: Any) -> Callable[[], object]:
        return lambda: ops.steer_add_rms_norm(
            x, residual, norm.weight, norm.variance_epsilon, steering
        )

    views = {}
    for name, chosen in (("unsteered", [None] * batch), ("steered", plans)):
        with handle.use(chosen), handle.generating(prompt) as loop:
            loop.step(2)
            loop.step(1)
            site = handle._shared.state.last.steering(site_index("resid_post", layer))
            views[name] = site._replace(
                row_slot=site.row_slot.clone(), row_gain=site.row_gain.clone()
            )
    with handle.use(plans), torch.inference_mode():  # keeps the slots
        return interleave(
            {
                "unsteered": op(views["unsteered"]),
                "steered": op(views["steered"]),
                "steered again": op(views["steered"]),
            }
        )
