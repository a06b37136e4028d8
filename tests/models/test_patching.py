"""An attached model in which nothing is steered is the model it was, and detach leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_llama import tiny_llama
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from steerfast import SteerfastError, SteeringVector, attach, steer

STEERED = (0, 2)  # layers; both have a neighbour that is not steered
COEFFICIENT = 3.0


def tiny(hidden: int = 64, layers: int = 4, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    return tiny_llama(hidden=hidden, layers=layers, seed=hidden).to(dtype)


def tokens(batch: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 512, (batch, length), generator=torch.Generator().manual_seed(seed))


def direction(hidden: int = 64, layers: tuple[int, ...] = STEERED) -> SteeringVector:
    rng = torch.Generator().manual_seed(7)
    return SteeringVector("d", {layer: torch.randn(hidden, generator=rng) for layer in layers})


def hook_steering(model: LlamaForCausalLM, vector: SteeringVector) -> LlamaForCausalLM:
    """The oracle: what the paper does, a forward hook on the layer that adds to its output."""
    for layer in vector.layers:
        delta = COEFFICIENT * vector.at(layer)
        model.model.layers[layer].register_forward_hook(
            lambda module, args, out, delta=delta: out + delta
        )
    return model


def logits(model: nn.Module, ids: Tensor, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **kwargs).logits


def assert_close(got: Tensor, want: Tensor, relative: float = 1e-5) -> None:
    assert got.dtype == want.dtype
    worst = (got - want).abs().max().item()
    assert worst <= relative * want.abs().max().item(), worst


def footprint(model: nn.Module) -> list[tuple[str, dict[str, Any]]]:
    """Every attribute of every module, the contents of its registries (hooks, parameters) included."""
    found = []
    for name, module in model.named_modules():
        attributes = dict(module.__dict__)
        for key, value in module.__dict__.items():
            if isinstance(value, dict):
                attributes |= {f"{key}[{inner!r}]": item for inner, item in value.items()}
        found.append((name, attributes))
    return found


def assert_same_footprint(model: nn.Module, before: list[tuple[str, dict[str, Any]]]) -> None:
    for (name, now), (old_name, old) in zip(footprint(model), before, strict=True):
        assert name == old_name
        assert now.keys() == old.keys(), (name, now.keys() ^ old.keys())
        for key, value in now.items():
            assert value is old[key], (name, key)


SIZES = pytest.mark.parametrize(("hidden", "layers"), [(64, 4), (72, 3)])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@SIZES
@DTYPES
def test_idle_layer_equals_stock_layer_given_equal_input(hidden, layers, dtype):
    """Called alone, so nothing is handed over. A fused norm may round otherwise than torch's (its sum
    runs in another order), so what attention and MLP read is pinned to what the stock layer's read."""
    stock = tiny(hidden, layers, dtype)
    model = copy.deepcopy(stock)
    attach(model)
    logits(model, tokens(2, 7))
    x = torch.randn(2, 7, hidden, generator=torch.Generator().manual_seed(1)).to(dtype)
    where = stock.model.rotary_emb(x, torch.arange(7)[None])
    for ours, theirs in zip(model.model.layers, stock.model.layers, strict=True):
        read: dict[str, Tensor] = {}
        theirs.input_layernorm.register_forward_hook(lambda m, a, o, r=read: r.update(attention=o))
        theirs.mlp.register_forward_pre_hook(lambda m, args, r=read: r.update(mlp=args[0]))
        with torch.no_grad():
            want = theirs(x, position_embeddings=where)
            free = ours(x, position_embeddings=where)
            ours.self_attn.register_forward_pre_hook(
                lambda m, args, kwargs, r=read: (args, kwargs | {"hidden_states": r["attention"]}),
                with_kwargs=True,
            )
            ours.mlp.register_forward_pre_hook(lambda m, args, r=read: (r["mlp"],))
            pinned = ours(x, position_embeddings=where)
        assert torch.equal(pinned, want)
        assert_close(free, want, 1e-5 if dtype == torch.float32 else 2**-7)


@SIZES
@DTYPES
def test_idle_stream_is_bitwise_the_sum_of_its_branches(hidden, layers, dtype):
    """In the running model, hand-over included: each stream is round(r + x) of what entered it, and each
    handed-over norm is, within rounding, the norm of that stream."""
    model = tiny(hidden, layers, dtype)
    branches: dict[tuple[int, str], Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        for name in ("self_attn", "mlp"):  # neither un-fuses anything

            def keep(m, args, kwargs, out, key=(index, name)):
                branches[key] = out[0] if isinstance(out, tuple) else out
                branches[(key[0], key[1] + "_in")] = args[0] if args else kwargs["hidden_states"]

            getattr(layer, name).register_forward_hook(keep, with_kwargs=True)
    attach(model)
    with torch.no_grad():
        out = model(tokens(2, 7), output_hidden_states=True)
        streams = out.hidden_states
        for index, layer in enumerate(model.model.layers):
            mid = streams[index] + branches[index, "self_attn"]
            for norm, stream, got in (
                (layer.input_layernorm, streams[index], branches[index, "self_attn_in"]),
                (layer.post_attention_layernorm, mid, branches[index, "mlp_in"]),
            ):
                assert_close(got, norm(stream), 1e-6 if dtype == torch.float32 else 2**-8)
            after = mid + branches[index, "mlp"]
            if index + 1 < layers:  # transformers shows the last one normed
                assert torch.equal(streams[index + 1], after)
        normed = type(model.model.norm).forward(model.model.norm, after)
        assert_close(streams[-1], normed, 1e-6 if dtype == torch.float32 else 2**-8)


def test_idle_logits_and_greedy_tokens_equal_stock_on_20_prompts():
    stock = tiny()
    model = copy.deepcopy(stock)
    attach(model)
    for seed in range(20):
        ids = tokens(1, 4 + seed, seed)
        first = logits(model, ids)
        assert_close(first, logits(stock, ids))
        assert torch.equal(first, logits(model, ids)), "the second idle pass differs from the first"
        arguments = {"max_new_tokens": 10, "do_sample": False}
        assert torch.equal(model.generate(ids, **arguments), stock.generate(ids, **arguments))


@SIZES
@DTYPES
def test_detach_restores_outputs_and_every_attribute(hidden, layers, dtype):
    model = tiny(hidden, layers, dtype)
    ids = tokens(2, 6)
    before, state, keys = logits(model, ids), footprint(model), list(model.state_dict())
    parameters = [name for name, _ in model.named_parameters()]
    handle = attach(model)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_parameters()] == parameters
    assert handle.model is model
    with handle.use(steer(direction(hidden), COEFFICIENT)):
        assert not torch.equal(logits(model, ids), before)
        model.generate(ids, max_new_tokens=2, do_sample=False)
        handle.detach()  # inside use: the plan goes with it
        assert torch.equal(logits(model, ids), before)
    handle.detach()
    assert torch.equal(logits(model, ids), before)
    assert list(model.state_dict()) == keys
    assert_same_footprint(model, state)
    with pytest.raises(SteerfastError, match="detached"):
        handle.use(steer(direction(hidden), COEFFICIENT))


def test_attach_again_and_as_context_manager():
    model, vector = tiny(), direction()
    ids = tokens(2, 6)
    state, before = footprint(model), logits(model, ids)
    want = logits(hook_steering(copy.deepcopy(model), vector), ids)
    for _ in range(3):
        with attach(model) as handle, handle.use(steer(vector, COEFFICIENT)):
            assert_close(logits(model, ids), want)
        assert torch.equal(logits(model, ids), before)
        assert_same_footprint(model, state)
    with pytest.raises(KeyError), attach(model):
        raise KeyError
    assert_same_footprint(model, state)


@pytest.mark.parametrize("part", ["LlamaModel", "LlamaForCausalLM"])
def test_deepcopy_of_an_attached_model_is_independent(part):
    stock, vector = tiny(), direction()
    ids = tokens(2, 6)
    idle = logits(stock, ids)
    handle = attach(stock.model if part == "LlamaModel" else stock)
    with handle.use(steer(vector, COEFFICIENT)):
        with pytest.raises(SteerfastError, match="cannot be copied while a plan is in use"):
            copy.deepcopy(stock)
        want = logits(stock, ids)
    twin = copy.deepcopy(stock)
    assert_close(logits(twin, ids), idle)
    with handle.use(steer(vector, COEFFICIENT)):
        assert_close(logits(twin, ids), idle)  # the copy does not share the original's plans,
        assert_close(logits(stock, ids), want)
    with torch.no_grad():  # nor its weights
        for parameter in stock.parameters():
            parameter.zero_()
    assert_close(logits(twin, ids), idle)
    handle.detach()
    assert_close(logits(twin, ids), idle)


@pytest.mark.parametrize("captured", ["before attach", "after attach"])
def test_output_hidden_states_shows_the_steered_stream(captured):
    model, vector = tiny(), direction()
    ids = tokens(2, 6)
    with torch.no_grad():
        oracle = hook_steering(copy.deepcopy(model), vector)
        want = oracle(ids, output_hidden_states=True).hidden_states
        if captured == "before attach":
            model(ids, output_hidden_states=True)
        with attach(model) as handle, handle.use(steer(vector, COEFFICIENT)):
            got = model(ids, output_hidden_states=True).hidden_states
    assert len(got) == len(want) == 5
    for ours, theirs in zip(got, want, strict=True):
        assert_close(ours, theirs)


def test_nested_use_replaces_and_returns():
    model, vector = tiny(), direction()
    ids = tokens(2, 6)
    idle = logits(model, ids)
    want = logits(hook_steering(copy.deepcopy(model), vector), ids)
    handle = attach(model)
    with handle.use(steer(vector, COEFFICIENT)):
        with handle.use(None):
            assert_close(logits(model, ids), idle)
        with handle.use(steer(vector, -COEFFICIENT)):
            assert (logits(model, ids) - want).abs().max() > 1e-2
        with pytest.raises(KeyError), handle.use(steer(vector, -COEFFICIENT)):
            raise KeyError
        with handle.use([steer(vector, COEFFICIENT), None]):
            mixed = logits(model, ids)
            assert_close(mixed[0], want[0])
            assert_close(mixed[1], idle[1])
        assert_close(logits(model, ids), want)
    assert_close(logits(model, ids), idle)
    inner_outlives = handle.use(steer(vector, -COEFFICIENT)), handle.use(steer(vector, COEFFICIENT))
    inner_outlives[0].close()
    assert_close(logits(model, ids), want)
    inner_outlives[1].close()
    assert_close(logits(model, ids), idle)


def distort(x: Tensor) -> Tensor:
    """A change that RMSNorm does not undo, as it would a factor."""
    return x + torch.linspace(-1.0, 1.0, x.shape[-1], dtype=x.dtype)


def distort_(x: Tensor) -> Tensor:
    return x.add_(torch.linspace(-1.0, 1.0, x.shape[-1], dtype=x.dtype))


def on_output(path: str) -> Callable[[nn.Module], Any]:
    return lambda model: model.get_submodule(path).register_forward_hook(
        lambda m, a, out: distort(out)
    )


def on_output_in_place(path: str) -> Callable[[nn.Module], Any]:
    def hook(module: nn.Module, args: Any, out: Tensor) -> None:
        distort_(out)

    return lambda model: model.get_submodule(path).register_forward_hook(hook)


def on_input(path: str) -> Callable[[nn.Module], Any]:
    return lambda model: model.get_submodule(path).register_forward_pre_hook(
        lambda m, args: (distort(args[0]), *args[1:])
    )


def everywhere(model: nn.Module) -> Any:
    """A global hook that changes one layer and one norm of this model only."""
    picked = (model.get_submodule("model.layers.1"), model.get_submodule("model.norm"))
    return nn.modules.module.register_module_forward_hook(
        lambda m, args, out: distort(out) if m in picked else None
    )


def everywhere_before(model: nn.Module) -> Any:
    picked = (
        model.get_submodule("model.layers.2"),
        model.get_submodule("model.layers.2.input_layernorm"),
    )
    return nn.modules.module.register_module_forward_pre_hook(
        lambda m, args: (distort(args[0]),) if m in picked else None
    )


class Replaced:
    """Another library's forward, put over a module's own; takes it away again like a hook handle."""

    def __init__(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        self.module, self.old = module, module.__dict__.get("forward")
        inner = module.forward
        module.forward = lambda *args, **kwargs: change(inner(*args, **kwargs))

    def remove(self) -> None:
        del self.module.forward
        if self.old is not None:
            self.module.forward = self.old


def replaced(path: str, change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module], Any]:
    return lambda model: Replaced(model.get_submodule(path), change)


WATCHERS = {
    "layer output": on_output("model.layers.1"),
    "layer output in place": on_output_in_place("model.layers.1"),
    "last layer output in place": on_output_in_place("model.layers.3"),
    "layer input": on_input("model.layers.2"),
    "first layer input": on_input("model.layers.0"),
    "input norm output": on_output("model.layers.2.input_layernorm"),
    "input norm output in place": on_output_in_place("model.layers.2.input_layernorm"),
    "input norm input": on_input("model.layers.2.input_layernorm"),
    "first input norm output": on_output("model.layers.0.input_layernorm"),
    "post-attention norm output": on_output("model.layers.2.post_attention_layernorm"),
    "final norm output": on_output("model.norm"),
    "final norm input": on_input("model.norm"),
    "mlp output": on_output("model.layers.1.mlp"),
    "global output": everywhere,
    "global input": everywhere_before,
    "foreign layer forward": replaced("model.layers.1", distort),
    "foreign layer forward in place": replaced("model.layers.1", distort_),
    "foreign last layer forward in place": replaced("model.layers.3", distort_),
    "foreign input norm": replaced("model.layers.2.input_layernorm", distort),
    "foreign post-attention norm": replaced("model.layers.2.post_attention_layernorm", distort),
    "foreign final norm": replaced("model.norm", distort),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("watcher", WATCHERS)
def test_hooks_and_foreign_forwards_after_attach_act_as_on_stock(watcher, mode):
    """A hook put on the attached model sees and changes just what it would see and change unpatched."""
    model, vector = tiny(), direction()
    ids = tokens(2, 6)
    oracle = hook_steering(copy.deepcopy(model), vector)
    untouched = logits(oracle, ids)
    handle = attach(model)
    put = WATCHERS[watcher]
    with mode(), handle.use(steer(vector, COEFFICIENT)):
        theirs = put(oracle)
        want = oracle(ids).logits
        theirs.remove()
        ours = put(model)
        got = model(ids).logits
        ours.remove()
        assert (want - untouched).abs().max() > 1e-2
        assert_close(got, want)
        assert_close(model(ids).logits, untouched)


def test_inference_mode_and_embeddings():
    """use() opened in inference mode must not poison a later pass outside of it, and the caller's
    embeddings (here not contiguous) are read, never written, even where the first site steers them."""
    model, vector = tiny(), direction()
    ids = tokens(2, 6)
    oracle = hook_steering(copy.deepcopy(model), vector)
    want = logits(oracle, ids)
    handle = attach(model)
    with torch.inference_mode():
        use = handle.use(steer(vector, COEFFICIENT))
        assert_close(model(ids).logits, want)
    with use:
        model(ids).logits.sum().backward()
        embeddings = torch.randn(6, 2, 64, generator=torch.Generator().manual_seed(3)).transpose(
            0, 1
        )
        kept = embeddings.clone()
        with torch.no_grad():
            want = oracle(inputs_embeds=kept).logits
            assert_close(model(inputs_embeds=embeddings).logits, want)
            moved = oracle(inputs_embeds=kept + vector.at(0)).logits
            plan = steer(vector, layers=[0], site="resid_pre")
            both = type(plan)((*plan.terms, *steer(vector, COEFFICIENT).terms))
            with handle.use(both):
                assert_close(model(inputs_embeds=embeddings).logits, moved)
    assert torch.equal(embeddings, kept)


def test_report_counts_the_rows_of_the_last_forward():
    model, vector = tiny(), direction()
    handle = attach(model, slots=2)
    assert (handle.report().rows, handle.report().steered, handle.report().lines) == (0, 0, ())
    mask = torch.ones(3, 6, dtype=torch.int64)
    mask[0, :4] = 0
    plan, other = steer(vector, COEFFICIENT), steer(vector, 1.0, layers=[2], site="resid_mid")
    with handle.use([plan, None, other]):
        logits(model, tokens(3, 6), attention_mask=mask)
        report = handle.report()
    assert (report.rows, report.steered) == (18, 2 + 6)
    found = {(line.site, line.plan, line.phase, line.rows) for line in report.lines}
    assert found == {
        ("resid_post[0]", plan.digest, "all", 2),
        ("resid_post[2]", plan.digest, "all", 2),
        ("resid_mid[2]", other.digest, "all", 6),
    }
    assert "8 of 18 rows steered" in str(report)
    with handle.use(steer(vector, COEFFICIENT, select="generated")):
        model.generate(tokens(2, 5), max_new_tokens=3, do_sample=False)
        assert (handle.report().rows, handle.report().steered) == (2, 2)
        assert {line.phase for line in handle.report().lines} == {"generated"}
        with pytest.raises(SteerfastError, match="prompt_lengths"):  # all prompt, or not: who knows
            logits(model, tokens(2, 5))
    with handle.use(plan):  # padding on the right and within is no more steered than on the left
        logits(model, tokens(2, 5), attention_mask=torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1]]))
        assert (handle.report().rows, handle.report().steered) == (10, 7)
    logits(model, tokens(2, 5))
    assert (handle.report().rows, handle.report().steered) == (10, 0)


def test_report_does_not_change_when_a_slot_is_given_to_another_plan():
    model, vector = tiny(), direction()
    handle = attach(model, slots=1)
    with handle.use(steer(vector, COEFFICIENT)):
        logits(model, tokens(2, 6))
        before = handle.report()
    with handle.use(steer(vector, -1.0, layers=[2])):
        assert handle.report() == before, "the last forward was steered by the first plan"


def test_idle_layer_called_before_any_forward():
    """Stock layers can be called by themselves; so can a patched one, at any shape."""
    model = tiny()
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))
    where = model.model.rotary_emb(x, torch.arange(5)[None])
    with torch.no_grad():
        want = model.model.layers[1](x, position_embeddings=where)
        attach(model)
        assert_close(model.model.layers[1](x, position_embeddings=where), want)
