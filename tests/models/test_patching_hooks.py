"""A steered, patched model equals plain forward hooks on a stock model. The oracle below shares nothing
with steerfast but the fields of Plan, Term and SteeringVector."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_llama import tiny_llama
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from steerfast import Plan, SteerfastError, SteeringVector, Term, attach, steer

FP32 = 1e-5


def tiny(
    hidden: int = 64, layers: int = 4, dtype: torch.dtype = torch.float32, seed: int = 0
) -> LlamaForCausalLM:
    return tiny_llama(hidden=hidden, layers=layers, seed=seed).to(dtype)


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 512, (batch, length), generator=torch.Generator().manual_seed(seed))


def vector(seed: int, layers: Sequence[int] = (0, 1, 2, 3), hidden: int = 64) -> SteeringVector:
    rng = torch.Generator().manual_seed(seed)
    directions = {layer: (1 + layer) * torch.randn(hidden, generator=rng) for layer in layers}
    norms = {layer: 4.0 + 3.0 * layer + seed for layer in layers}
    return SteeringVector(f"v{seed}", directions, norms)


class Hooks:
    """Steers ``model`` by hooks while entered. Columns (cache included) before ``pads[row]`` are padding,
    those from ``width`` on were generated; row r of the batch belongs to plan r // (rows / plans)."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        plans: Plan | Sequence[Plan | None] | None,
        width: int = 10**6,
        pads: Sequence[int] = (0,),
    ) -> None:
        self.model = model
        self.plans = [plans] if plans is None or isinstance(plans, Plan) else list(plans)
        self.width, self.pads = width, torch.tensor(pads)
        self.columns = torch.zeros(0)

    def __enter__(self) -> None:
        decoder = self.model.model
        self.hooks = [decoder.register_forward_pre_hook(self.begin, with_kwargs=True)]
        self.hooks += [decoder.layers[0].register_forward_pre_hook(self.before_first)]
        for index, layer in enumerate(decoder.layers):
            self.hooks += [
                layer.post_attention_layernorm.register_forward_pre_hook(
                    lambda m, args, i=index: self.middle(args[0], i)
                ),
                layer.register_forward_hook(
                    lambda m, args, out, i=index: self.steered(out, ("resid_post", i)), prepend=True
                ),
            ]

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        ids = kwargs["inputs_embeds"] if ids is None else ids
        cache = kwargs.get("past_key_values")
        seen = 0 if cache is None else int(cache.get_seq_length())
        self.columns = (torch.arange(ids.shape[1]) + seen).expand(ids.shape[0], -1)

    def before_first(self, module: nn.Module, args: Any) -> Any:
        return (self.steered(args[0], ("resid_pre", 0)), *args[1:])

    def middle(self, stream: Tensor, layer: int) -> None:
        """The norm's input is the very tensor that the layer adds the MLP to: write into it."""
        new = self.steered(stream.clone(), ("resid_mid", layer))
        if not torch.equal(new, stream):
            stream.copy_(new)

    def steered(self, h: Tensor, place: tuple[str, int]) -> Tensor:
        rows = torch.arange(h.shape[0])
        pads = self.pads.repeat_interleave(h.shape[0] // len(self.pads))
        real = self.columns >= pads[:, None]
        generated = self.columns >= self.width
        for index, plan in enumerate(self.plans):
            mine = (rows // (h.shape[0] // len(self.plans)) == index)[:, None] & real
            for phase, where in (("prompt", mine & ~generated), ("generated", mine & generated)):
                added = None if plan is None else sum_of_terms(plan, place, phase)
                if added is None or not where.any():
                    continue
                wide = h.double()
                y = wide + added
                if plan.finish != "none":
                    factor = wide.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True)
                    y = y * (factor if plan.finish == "preserve" else factor.clamp(max=1.0))
                h = torch.where(where[:, :, None], y.to(h.dtype), h)
        return h


def place_of(term: Term, layer: int) -> tuple[str, int]:
    before = term.site == "resid_pre" and layer > 0
    return ("resid_post", layer - 1) if before else (term.site, layer)


def sum_of_terms(plan: Plan, place: tuple[str, int], phase: str) -> Tensor | None:
    here = [
        (t, layer) for t in plan.terms for layer in t.steered_layers if place_of(t, layer) == place
    ]
    distinct = {tuple(t.vector.at(layer).tolist()) for t, layer in here}
    mean = sum(torch.tensor(d, dtype=torch.float64).norm().item() for d in distinct) / max(
        len(distinct), 1
    )
    total = None
    for term, layer in here:
        if term.coefficient == 0 or term.select not in ("all", phase):
            continue
        v = term.vector.at(layer).double()
        size = {
            "raw": v.norm(),
            "unit": 1.0,
            "equal": mean,
            "stream": term.vector.stream_norms.get(layer),
        }
        one = term.coefficient * v / v.norm() * size[term.scale]
        total = one if total is None else total + one
    return total


def assert_close(got: Tensor, want: Tensor, relative: float = FP32) -> None:
    assert got.dtype == want.dtype
    worst = (got - want).abs().max().item()
    assert worst <= relative * want.abs().max().item(), worst


def plans_for(hidden: int = 64, layers: int = 4) -> dict[str, Plan]:
    v, w = (vector(seed, range(layers), hidden) for seed in (1, 2))
    last = layers - 1
    met = (
        Term(v, 1.0, (2,), "equal", "resid_pre"),
        Term(w, 1.0, (1,), "equal"),
        Term(v, 1.0, (1,), site="resid_mid"),
    )
    return {
        "pre of 0": steer(v, 1.5, layers=[0], site="resid_pre"),
        "pre": steer(v, 1.0, site="resid_pre"),
        "mid": steer(v, 1.0, site="resid_mid"),
        "post": steer(v, 1.5),
        "one layer": steer(v, -2.0, layers=[1]),
        "last layer": steer(v, 1.0, layers=[last]),
        "unit": steer(v, 6.0, scale="unit"),
        "equal": Plan((Term(v, 1.0, scale="equal"), Term(w, -0.5, (1, last), "equal"))),
        "equal, one named twice": Plan(
            (Term(v, 1.0, scale="equal"), Term(v, 0.25), Term(v, 0.0), Term(w, 0.5, scale="equal"))
        ),
        "stream": steer(v, 0.5, scale="stream"),
        "pre and post meet": Plan(met, "preserve"),
        "preserve": steer(v, 2.0, finish="preserve"),
        "preserve at pre of 0": steer(v, 2.0, layers=[0], site="resid_pre", finish="preserve"),
        "shrink": Plan((Term(v, 2.0), Term(w, -1.0, (0,), site="resid_mid")), "shrink"),
        "prompt": steer(v, 1.5, select="prompt"),
        "generated": steer(v, 1.5, select="generated"),
        "all three": Plan(
            (Term(v, 1.0, select="prompt"), Term(w, 1.0, select="generated"), Term(w, 0.3))
        ),
    }


PLANS = plans_for()
BY_PLAN = pytest.mark.parametrize("name", PLANS)
SIZES = pytest.mark.parametrize(("hidden", "layers"), [(64, 4), (72, 3)])


def prefill_and_two_steps(model: LlamaForCausalLM, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Logits and hidden states of a bare forward and of two decode steps on its cache."""
    cache, found = DynamicCache(config=model.config), []
    length = ids.shape[1]
    for start, end in ((0, length - 2), (length - 2, length - 1), (length - 1, length)):
        with torch.no_grad():
            out = model(
                ids[:, start:end],
                attention_mask=mask[:, :end],
                past_key_values=cache,
                output_hidden_states=True,
            )
        real = mask[:, start:end].bool()  # attention over nothing: what padding holds is arbitrary
        found += [state[real] for state in (out.logits, *out.hidden_states)]
    return found


@BY_PLAN
@SIZES
def test_every_hidden_state_equals_the_hooks(name, hidden, layers):
    plan = plans_for(hidden, layers)[name]
    model = tiny(hidden, layers)
    stock = copy.deepcopy(model)
    ids, mask = tokens(3, 8), torch.ones(3, 8, dtype=torch.int64)
    mask[1, :3] = 0
    with Hooks(stock, [plan, plan, None], width=6, pads=(0, 3, 0)):
        want = prefill_and_two_steps(stock, ids, mask)
    with attach(model) as handle, handle.use([plan, plan, None], prompt_lengths=[6, 3, 6]):
        got = prefill_and_two_steps(model, ids, mask)
    plain = prefill_and_two_steps(stock, ids, mask)
    assert max((a - b).abs().max().item() for a, b in zip(want, plain, strict=True)) > 0.1
    skip = {
        1 + step * (layers + 2) for step in range(3)
    }  # hidden_states[0]: tested below by itself
    for index, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        if index not in skip:
            assert_close(ours, theirs)


def test_first_hidden_state_shows_resid_pre_steering():
    """hidden_states[0] is the stream that enters layer 0: a pre-hook there shows, so must resid_pre."""
    model, plan = tiny(), PLANS["pre of 0"]
    stock = copy.deepcopy(model)
    with torch.no_grad(), Hooks(stock, plan), attach(model).use(plan):
        want = stock(tokens(2, 5), output_hidden_states=True).hidden_states[0]
        assert_close(model(tokens(2, 5), output_hidden_states=True).hidden_states[0], want)


@BY_PLAN
def test_bf16_stays_within_rounding_of_the_hooks(name):
    """Each layer rounds four times (two sums, two norms) by up to 2^-9, and what differs between the
    two models is only which way a near-tie goes; 16 roundings of a row's largest value bound it."""
    model, plan = tiny(dtype=torch.bfloat16), PLANS[name]
    stock = copy.deepcopy(model)
    ids = tokens(2, 8)
    mask = torch.ones_like(ids)
    with Hooks(stock, plan, width=6):
        want = prefill_and_two_steps(stock, ids, mask)
    with attach(model) as handle, handle.use(plan, prompt_lengths=[6, 6]):
        got = prefill_and_two_steps(model, ids, mask)
    plain = prefill_and_two_steps(stock, ids, mask)
    effect = max((a - b).abs().max().item() for a, b in zip(want, plain, strict=True))
    for index, (ours, theirs) in enumerate(zip(got, want, strict=True)):
        if index % 6 != 1:
            assert_close(ours, theirs, 16 * 2**-9)
            assert (ours - theirs).abs().max() < effect / 4


DIFFERENT = [PLANS["generated"], None, PLANS["all three"], PLANS["preserve"]]
STRATEGIES = {
    "greedy": {},
    "without cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "beams returned": {"num_beams": 4, "num_return_sequences": 2},
    "samples": {"do_sample": True, "num_return_sequences": 3, "top_k": 20},
    "chunked prefill": {"prefill_chunk_size": 3},
    "chunks smaller than the padding": {"prefill_chunk_size": 2},
    "static cache": {"cache_implementation": "static"},
}


def generated(model: LlamaForCausalLM, ids: Tensor, **kwargs: Any) -> Any:
    torch.manual_seed(11)
    kwargs = {"do_sample": False, "max_new_tokens": 5, **kwargs}
    return model.generate(ids, return_dict_in_generate=True, output_logits=True, **kwargs)


def assert_same_generation(got: Any, want: Any) -> None:
    assert torch.equal(got.sequences, want.sequences)
    for ours, theirs in zip(got.logits, want.logits, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize(
    "plans", [PLANS["generated"], PLANS["prompt"], DIFFERENT], ids=["generated", "prompt", "each"]
)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_generate_equals_the_hooks(strategy, plans):
    model = tiny()
    stock, ids, pads = copy.deepcopy(model), tokens(4, 7), (0, 5, 3, 0)
    mask = (torch.arange(7) >= torch.tensor(pads)[:, None]).long()
    arguments = {"attention_mask": mask, **STRATEGIES[strategy]}
    with Hooks(stock, plans, width=7, pads=pads):
        want = generated(stock, ids, **arguments)
    plain = generated(stock, ids, **arguments)
    assert (
        max((a - b).abs().max().item() for a, b in zip(want.logits, plain.logits, strict=True))
        > 0.1
    )
    handle = attach(model)
    with handle.use(plans):
        assert_same_generation(generated(model, ids, **arguments), want)
        assert_same_generation(generated(model, ids, **arguments), want)  # no state is left behind
    assert_same_generation(generated(model, ids, **arguments), plain)


def test_padded_rows_generate_what_they_do_alone_and_unsteered_rows_are_bitwise_unsteered():
    model, ids, pads = tiny(), tokens(4, 7), (0, 5, 3, 0)
    mask = (torch.arange(7) >= torch.tensor(pads)[:, None]).long()
    handle = attach(model)
    with handle.use(DIFFERENT):
        together = generated(model, ids, attention_mask=mask)
    idle = generated(model, ids, attention_mask=mask)
    for row, (plan, pad) in enumerate(zip(DIFFERENT, pads, strict=True)):
        with handle.use(plan):
            alone = generated(model, ids[row : row + 1, pad:])
        assert torch.equal(together.sequences[row, 7:], alone.sequences[0, 7 - pad :])
        for batched, single, unsteered in zip(
            together.logits, alone.logits, idle.logits, strict=True
        ):
            assert_close(
                batched[row], single[0], 3e-5
            )  # padding makes attention sum in another order
            assert plan is not None or torch.equal(batched[row], unsteered[row])


@pytest.mark.parametrize("name", ["generated", "all three", "prompt"])
@pytest.mark.parametrize("draft", ["assistant model", "prompt lookup"])
def test_speculative_decoding_equals_the_hooks_and_plain_greedy(draft, name):
    """The assistant is a perturbed copy, so that some of its guesses are taken and others refused."""
    model, ids, plan = tiny(), tokens(1, 7).repeat(1, 2), PLANS[name]
    stock, assistant = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(2)
    for parameter in assistant.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    how = (
        {"assistant_model": assistant}
        if draft == "assistant model"
        else {"prompt_lookup_num_tokens": 3}
    )
    with Hooks(stock, plan, width=14):
        want = stock.generate(ids, max_new_tokens=12, do_sample=False, **how)
    with attach(model) as handle, handle.use(plan):
        assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False, **how), want)
        assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False), want)
    assert not torch.equal(stock.generate(ids, max_new_tokens=12, do_sample=False), want)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "name", ["pre of 0", "mid", "post", "preserve", "pre and post meet", "shrink"]
)
@pytest.mark.parametrize(
    "reentrant", [None, False, True], ids=["stored", "checkpoint", "reentrant"]
)
def test_gradients_equal_the_hooks_even_when_the_plan_is_gone_before_backward(name, reentrant):
    model, ids, mlp_calls = tiny().train(), tokens(2, 8), []
    stock, plans = copy.deepcopy(model), [PLANS[name], None]
    with Hooks(stock, plans):
        want = stock(ids, labels=ids).loss
        want.backward()
    handle = attach(model, slots=1)
    if reentrant is not None:
        how = {"use_reentrant": reentrant}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda m, args: mlp_calls.append(1))
    if reentrant is not None and "__call__" in LlamaDecoderLayer.__base__.__dict__:
        with pytest.raises(SteerfastError, match=r"needs transformers >= 5\.23"):
            model(
                ids, labels=ids
            )  # it checkpoints around our forward, which could go wrong silently
        return
    with handle.use(plans):
        loss = model(ids, labels=ids).loss
    with handle.use(PLANS["unit"]), torch.no_grad():  # takes the one slot, and another route
        model(tokens(3, 4))
    mlp_calls.clear()
    loss.backward()
    assert len(mlp_calls) == (0 if reentrant is None else 4)  # recomputed, not silently stored
    assert_close(loss, want)
    ours, theirs = gradients(model), gradients(stock)
    assert ours.keys() == theirs.keys()
    for key, gradient in theirs.items():
        assert_close(ours[key], gradient, 3e-5)


@pytest.mark.parametrize("attached", ["before", "after"])
def test_peft_lora_equals_the_hooks(attached):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model, stock, ids = tiny(), tiny(), tokens(2, 6)
    handle = attach(model) if attached == "before" else None
    wrapped = []
    for base in (model, stock):
        torch.manual_seed(5)
        wrapped.append(peft.get_peft_model(base, config))
    handle = handle or attach(wrapped[0])
    with handle.use([PLANS["all three"], None]), Hooks(stock, [PLANS["all three"], None], width=6):
        results = [
            generated(m, input_ids) for m, input_ids in zip(wrapped, (ids, ids), strict=True)
        ]
        assert_same_generation(*results)
        losses = [m(ids, labels=ids).loss for m in wrapped]
        for loss in losses:
            loss.backward()
        ours, theirs = (gradients(m) for m in wrapped)
        assert ours.keys() == theirs.keys()
        assert all("lora" in key for key in ours)
        for key, gradient in theirs.items():
            assert_close(ours[key], gradient, 3e-5)
        merged = [m.merge_and_unload() for m in wrapped]
        assert_same_generation(*(generated(m, ids) for m in merged))


@pytest.mark.parametrize("row_by_row", [False, True], ids=["one plan", "other rows"])
def test_compiled_equals_eager_and_replacing_plans_recompiles_nothing(row_by_row):
    """A guard on which rows are None would meet dynamo's recompile limit after eight batches."""
    from torch._dynamo.backends.debugging import aot_eager

    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    torch._dynamo.reset()
    model, stock, ids = tiny(layers=2), tiny(layers=2), tokens(2, 6)
    v = vector(1, (0, 1))
    middle = steer(v, -2.0, layers=[1], site="resid_mid", finish="preserve")
    uses = [steer(v, 1.0), middle, steer(v, 0.5, layers=[0])]
    if row_by_row:
        uses = [[uses[0], None], [None, middle], [uses[2], middle]]
    handle = attach(model)
    compiled = torch.compile(model, fullgraph=True, backend=counting)
    with torch.no_grad():
        for plans in uses:
            with handle.use(plans), Hooks(stock, plans):
                assert_close(compiled(ids, use_cache=False).logits, stock(ids).logits)
            assert len(graphs) == 1
