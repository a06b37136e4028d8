"""What cannot be right is a clear error before anything is changed, and offloaded models stay right."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_llama import tiny_llama
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, DynamicCache, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from steerfast import Plan, SteerfastError, SteeringVector, Term, attach, steer


def vector(seed: int = 1, layers: tuple[int, ...] = (0, 1, 2, 3), **kwargs: Any) -> SteeringVector:
    rng = torch.Generator().manual_seed(seed)
    return SteeringVector(f"v{seed}", {i: torch.randn(64, generator=rng) for i in layers}, **kwargs)


V = vector()
PLAN, OTHER, THIRD = steer(V, 3.0), steer(V, -3.0), steer(vector(2), 2.0)
IDS = torch.randint(3, 512, (2, 6), generator=torch.Generator().manual_seed(0))


def logits(model: nn.Module, ids: Tensor = IDS, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return model(ids, **kwargs).logits


def hooked(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The oracle for PLAN: forward hooks that add to the layers' outputs."""
    for layer, direction in zip(model.model.layers, V.directions.values(), strict=True):
        layer.register_forward_hook(lambda m, a, out, d=direction: out + 3.0 * d)
    return model


def assert_close(got: Tensor, want: Tensor) -> None:
    worst = (got - want).abs().max().item()
    assert worst <= 1e-5 * want.abs().max().item(), worst


# -- attach ------------------------------------------------------------------------------------------


class Doubled(modeling_llama.LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x) + 1


def doubling(module: nn.Module) -> None:
    """Another library's patch of one instance."""
    inner = module.forward
    module.forward = lambda *args, **kwargs: 2 * inner(*args, **kwargs) + 1


def swap(model: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)


REFUSED = {
    "layer forward": lambda model: doubling(model.model.layers[2]),
    "one layer object twice": lambda model: swap(model, "model.layers.1", model.model.layers[0]),
}
# Called as the modules that they are, and steered all the same.
FOREIGN = {
    "input norm class": lambda model: swap(model, "model.layers.2.input_layernorm", Doubled(64)),
    "post-attention norm class": lambda model: swap(
        model, "model.layers.2.post_attention_layernorm", Doubled(64)
    ),
    "final norm class": lambda model: swap(model, "model.norm", Doubled(64)),
    "final LayerNorm": lambda model: swap(model, "model.norm", nn.LayerNorm(64)),
    "a norm that is none": lambda model: swap(
        model, "model.layers.1.input_layernorm", nn.Identity()
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_attach_refuses_foreign_parts_and_changes_nothing(what):
    model = tiny_llama()
    REFUSED[what](model)
    before = logits(model, use_cache=False)
    forwards = [module.__dict__.get("forward") for module in model.modules()]
    with pytest.raises(SteerfastError, match=r"layers\."):
        attach(model)
    assert [module.__dict__.get("forward") for module in model.modules()] == forwards
    assert not {"generate", "prepare_inputs_for_generation"} & model.__dict__.keys()
    assert torch.equal(logits(model, use_cache=False), before)


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_norms_run_as_they_are(what):
    model, stock = tiny_llama(), tiny_llama()
    FOREIGN[what](model)
    FOREIGN[what](stock)
    with attach(model) as handle:
        torch.testing.assert_close(logits(model), logits(stock))
        hooked(stock)
        with handle.use(PLAN):
            assert_close(logits(model), logits(stock))


@pytest.mark.parametrize("part", ["input_layernorm", "post_attention_layernorm", "norm"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_foreign_norm_forward_is_called_or_refused(part, when):
    """Never bypassed in silence by the fused norm."""
    model = tiny_llama()
    stock = copy.deepcopy(model)
    path = "model.norm" if part == "norm" else f"model.layers.2.{part}"
    doubling(stock.get_submodule(path))
    want = logits(hooked(stock))
    if when == "before":
        doubling(model.get_submodule(path))
    try:
        handle = attach(model)
    except SteerfastError:
        return
    if when == "after":
        doubling(model.get_submodule(path))
    with handle.use(PLAN):
        assert_close(logits(model), want)


@pytest.mark.parametrize(
    "path",
    [
        "layers.0.input_layernorm",
        "layers.2.input_layernorm",
        "layers.2.post_attention_layernorm",
        "norm",
    ],
)
def test_a_norm_replaced_after_attach_is_called_or_refused(path):
    model = tiny_llama()
    stock, new = copy.deepcopy(model), Doubled(64)
    swap(stock.model, path, new)
    want = logits(hooked(stock))
    with attach(model) as handle, handle.use(PLAN):
        swap(model.model, path, new)
        try:
            got = logits(model)
        except SteerfastError:
            swap(model.model, path, tiny_llama().model.get_submodule(path))
        else:
            assert_close(got, want)


def test_a_layer_replaced_after_attach_steers_or_is_refused():
    model = tiny_llama()
    want = logits(hooked(tiny_llama()))
    handle = attach(model)
    model.model.layers[1] = tiny_llama().model.layers[1]
    with handle.use(PLAN):
        try:
            got = logits(model)
        except SteerfastError:
            return
    assert_close(got, want)


@pytest.mark.parametrize("owner", ["LlamaDecoderLayer", "LlamaRMSNorm", "LlamaMLP"])
def test_a_class_patched_by_another_library_runs_as_patched(owner, monkeypatch):
    patched = getattr(modeling_llama, owner)
    inner = patched.forward
    monkeypatch.setattr(
        patched, "forward", lambda self, *args, **kwargs: inner(self, *args, **kwargs) + 1
    )
    model, want = tiny_llama(), logits(hooked(tiny_llama()))
    with attach(model) as handle:
        assert (handle.survey.fused == 0) == (owner == "LlamaDecoderLayer")
        with handle.use(PLAN):
            assert_close(logits(model), want)


def test_a_replaced_norm_class_runs(monkeypatch):
    """What Liger does: the name in transformers' module now means another class."""
    monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", Doubled)
    model, want = tiny_llama(), logits(hooked(tiny_llama()))
    with attach(model) as handle, handle.use(PLAN):
        assert_close(logits(model), want)


def test_attach_refuses_what_is_no_decoder():
    encoder = BertForMaskedLM(
        BertConfig(num_hidden_layers=1, hidden_size=32, num_attention_heads=2, vocab_size=64)
    )
    with pytest.raises(SteerfastError, match="Linear"):
        attach(nn.Linear(4, 4))
    with pytest.raises(SteerfastError, match="2 decoders"):
        attach(nn.ModuleList([tiny_llama(), tiny_llama()]))
    with pytest.raises(TypeError, match="dict"):
        attach({})
    with pytest.raises(SteerfastError, match=r"BertModel.*not causal"):
        attach(encoder)
    assert not any("forward" in module.__dict__ for module in encoder.modules())


@pytest.mark.parametrize("second", ["model", "decoder"])
def test_one_handle_at_a_time(second):
    model = tiny_llama()
    handle = attach(model)
    with pytest.raises(SteerfastError, match="attached already"):
        attach(model if second == "model" else model.model)
    with handle.use(PLAN):
        assert_close(logits(model), logits(hooked(tiny_llama())))
    handle.detach()
    attach(model).detach()
    assert torch.equal(logits(model), logits(tiny_llama()))


# -- vectors, terms, plans ---------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_vector_with_nan_is_refused(bad):
    with pytest.raises(ValueError, match=r"'x'.*layer 1"):
        SteeringVector("x", {0: torch.ones(64), 1: torch.tensor([1.0, bad])})


@pytest.mark.parametrize("scale", ["unit", "equal", "stream"])
def test_a_zero_vector_cannot_be_normalised(scale):
    zero = SteeringVector("z", {2: torch.zeros(64)}, {2: 1.0})
    with pytest.raises(ValueError, match=r"'z' is zero at layer 2"):
        steer(zero, 1.0, scale=scale)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"scale": "huge"}, "scale 'huge'.*raw, unit, equal, stream"),
        ({"site": "mlp"}, "site 'mlp'.*resid_pre, resid_mid, resid_post"),
        ({"select": "some"}, "selector 'some'.*all, prompt, generated"),
        ({"finish": "grow"}, "finish 'grow'.*none, preserve, shrink"),
        ({"layers": [4]}, r"no layer 4; it has 0\.\.3"),
        ({"layers": []}, "names no layer"),
        ({"layers": [-1]}, "no layer -1"),
        ({"coefficient": float("nan")}, "must be finite"),
        ({"scale": "stream"}, "stream norm of layer 0"),
    ],
)
def test_a_term_that_means_nothing_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        steer(V, **{"coefficient": 1.0, **arguments})


# -- use ---------------------------------------------------------------------------------------------

NARROW = SteeringVector("narrow", {0: torch.ones(32)})
DEEP = SteeringVector("deep", {3: torch.ones(64), 4: torch.ones(64)})


@pytest.mark.parametrize(
    ("plans", "error", "match"),
    [
        (steer(DEEP), ValueError, r"layer 4.*0\.\.3"),
        ([PLAN, steer(DEEP)], ValueError, r"layer 4.*0\.\.3"),
        (steer(NARROW), ValueError, r"32.*64"),
        ([None, steer(NARROW)], ValueError, r"narrow.*32.*64"),
        ([PLAN, OTHER, THIRD], SteerfastError, "full"),
        (
            Plan((Term(V, 1.0, select="prompt"), Term(V, 2.0, select="generated"))),
            SteerfastError,
            "2 slots",
        ),
        ([], ValueError, "empty"),
        ([PLAN, V], TypeError, "SteeringVector"),
        (V, TypeError, "SteeringVector|plan"),
    ],
)
def test_use_refuses_and_the_outer_plan_stays(plans, error, match):
    model = tiny_llama()
    want = logits(hooked(tiny_llama()))
    handle = attach(model, slots=2)
    with handle.use(PLAN):
        with pytest.raises(error, match=match):
            handle.use(plans)
        assert_close(logits(model), want)
        with handle.use([PLAN, OTHER]):  # the refused attempts hold no room
            assert_close(logits(model)[0], want[0])
    assert_close(logits(model), logits(tiny_llama()))


def test_a_full_table_has_room_again_after_release():
    model = tiny_llama()
    handle = attach(model, slots=1)
    with handle.use(OTHER):
        before = logits(model)
        with pytest.raises(SteerfastError, match=r"full.*slots"):
            handle.use(PLAN)
        assert torch.equal(logits(model), before)
    with handle.use(PLAN):
        assert_close(logits(model), logits(hooked(tiny_llama())))


def test_a_vector_of_another_model_warns_with_both_names():
    model = tiny_llama()
    model.config._name_or_path = "here/Llama-Here"
    stranger = vector(provenance={"model": "there/Llama-There"})
    with attach(model) as handle:
        with pytest.warns(UserWarning, match=r"Llama-There.*Llama-Here"):
            use = handle.use(steer(stranger, 3.0))
        assert_close(logits(model), logits(hooked(tiny_llama())))
        use.close()


# -- forward and generate ----------------------------------------------------------------------------


def cached(length: int = 3) -> DynamicCache:
    return tiny_llama()(IDS[:, :length], use_cache=True).past_key_values


WRONG_CALLS = {
    "longer list": ([PLAN, None, OTHER], lambda m: logits(m), ValueError, r"3 plans.*2 rows"),
    "shorter list": ([PLAN], lambda m: logits(m), ValueError, r"1 plans.*2 rows"),
    "list that divides": (
        [PLAN, None],
        lambda m: logits(m, IDS.repeat(2, 1)),
        ValueError,
        r"2 plans.*4 rows",
    ),
    "generate, longer list": (
        [PLAN, None, OTHER],
        lambda m: m.generate(IDS),
        ValueError,
        r"3 plans.*2 prompts",
    ),
    "generate, shorter list": (
        [PLAN],
        lambda m: m.generate(inputs=IDS),
        ValueError,
        r"1 plans.*2 prompts",
    ),
    "generate, list that divides": (
        [PLAN, None],
        lambda m: m.generate(input_ids=IDS.repeat(2, 1)),
        ValueError,
        r"2 plans.*4 prompts",
    ),
    "generate, list as long as the beams": (
        [PLAN, None, PLAN, None],
        lambda m: m.generate(IDS, num_beams=2, max_new_tokens=2),
        ValueError,
        r"4 plans.*2 prompts",
    ),
    "4-D mask": (
        PLAN,
        lambda m: logits(m, attention_mask=torch.ones(2, 1, 6, 6)),
        SteerfastError,
        "4-D",
    ),
    "mask narrower than cache and tokens": (
        PLAN,
        lambda m: logits(m, past_key_values=cached(), attention_mask=torch.ones(2, 6)),
        ValueError,
        r"6 tokens.*3.*6",
    ),
    "mask narrower than the tokens": (
        PLAN,
        lambda m: logits(m, attention_mask=torch.ones(2, 5)),
        ValueError,
        "5 tokens",
    ),
}


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_a_call_that_the_plans_do_not_fit_fails_before_any_layer_runs(call):
    plans, run, error, match = WRONG_CALLS[call]
    model, ran = tiny_llama(), []
    handle = attach(model)
    for module in (model.model.layers[0].self_attn, model.model.layers[0].mlp):
        module.register_forward_hook(lambda m, args, out: ran.append(m))
    with handle.use(plans), pytest.raises(error, match=match):
        run(model)
    assert not ran
    assert_close(logits(model), logits(tiny_llama()))
    with handle.use(PLAN):
        assert_close(logits(model), logits(hooked(tiny_llama())))


def test_prompt_lengths_of_another_batch_are_refused():
    model = tiny_llama()
    handle = attach(model)
    with (
        handle.use(PLAN, prompt_lengths=[3, 3, 3]),
        pytest.raises(ValueError, match=r"3 prompt lengths.*2 rows"),
    ):
        logits(model)
    assert_close(logits(model), logits(tiny_llama()))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"measured": [("resid_post", 4)]},
            ValueError,
            r"layer 4, but this model has layers 0\.\.3",
        ),
        ({"measured": [("resid_post", -1)]}, ValueError, "layer -1"),
        ({"measured": [("resid_end", 1)]}, ValueError, "unknown site of measured 'resid_end'"),
        ({"measured": [("resid_post", 1.0)]}, TypeError, "layer of a measured site is an integer"),
        ({"measured": [("resid_post", True)]}, TypeError, "layer of a measured site is an integer"),
        ({"measured": ("resid_post", 1)}, ValueError, r'measured names sites, as \[\("resid_post"'),
        ({"slots": True}, TypeError, "slots is an integer"),
        ({"slots": 0}, ValueError, "at least one slot"),
        ({"bank_rows": 0}, ValueError, "at least one bank row"),
        ({"bank_rows": -1}, ValueError, "at least one bank row"),
        ({"programs": -1}, ValueError, "at least 0 programs"),
    ],
)
def test_what_no_table_and_no_site_is_changes_nothing(arguments, error, message):
    model = tiny_llama()
    with pytest.raises(error, match=message):
        attach(model, **arguments)
    assert "forward" not in vars(model.model.layers[0])
    attach(model, measured=[("resid_post", 3), ("resid_pre", 0)]).detach()


def test_a_4d_mask_is_fine_while_nothing_is_steered():
    model, mask = tiny_llama(), torch.ones(2, 1, 6, 6, dtype=torch.bool).tril()
    attach(model)
    assert_close(logits(model, attention_mask=mask), logits(tiny_llama(), attention_mask=mask))


def test_a_mask_wider_than_the_tokens_is_refused_or_right():
    """transformers reads its first columns; the last ones would leave real tokens unsteered."""
    model, mask = tiny_llama(), torch.tensor([[1] * 6 + [0] * 3] * 2)
    with attach(model) as handle, handle.use(PLAN):
        try:
            got = logits(model, attention_mask=mask)
        except (ValueError, SteerfastError):
            return
        assert_close(got, logits(hooked(tiny_llama()), attention_mask=mask))


# -- other libraries on top of, or below, the patch --------------------------------------------------


@pytest.mark.parametrize("path", ["model.layers.1", "model.norm", "model"])
def test_detach_below_another_patch_raises_and_changes_nothing(path):
    model = tiny_llama()
    handle = attach(model)
    module = model.get_submodule(path)
    ours = module.forward
    module.forward = theirs = lambda *args, **kwargs: ours(*args, **kwargs)
    patched = [m.__dict__.get("forward") for m in model.modules()]
    with handle.use(PLAN):
        with pytest.raises(SteerfastError, match=path.replace(".", r"\.")):
            handle.detach()
        assert [m.__dict__.get("forward") for m in model.modules()] == patched
        assert module.forward is theirs
        assert_close(logits(model), logits(hooked(tiny_llama())))
    module.forward = ours
    handle.detach()
    assert torch.equal(logits(model), logits(tiny_llama()))
    assert not any("forward" in m.__dict__ for m in model.modules())


def cpu_offload(model: nn.Module, folder: Any) -> None:
    import accelerate

    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def disk_offload(model: nn.Module, folder: Any) -> None:
    import accelerate

    accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))


def dispatch(model: nn.Module, folder: Any) -> None:
    import accelerate

    places = {
        "model.embed_tokens": "cpu",
        "model.rotary_emb": "cpu",
        "model.norm": "disk",
        "lm_head": "cpu",
    }
    places |= {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(4)}
    accelerate.dispatch_model(
        model, places, main_device="cpu", offload_dir=folder, force_hooks=True
    )


@pytest.mark.parametrize("offload", [cpu_offload, disk_offload, dispatch])
@pytest.mark.parametrize("order", ["attach, offload", "offload, attach"])
def test_an_offloaded_model_equals_one_that_is_not(offload, order, tmp_path):
    pytest.importorskip("accelerate")
    model = tiny_llama()
    idle, want = logits(model), logits(hooked(tiny_llama()))
    tokens = tiny_llama().generate(IDS, max_new_tokens=4, do_sample=False)
    steered_tokens = hooked(tiny_llama()).generate(IDS, max_new_tokens=4, do_sample=False)
    if order == "attach, offload":
        handle = attach(model)
        offload(model, tmp_path)
    else:
        offload(model, tmp_path)
        handle = attach(model)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert_close(model(IDS).logits, idle)
            with handle.use(PLAN):
                assert_close(model(IDS).logits, want)
                assert torch.equal(
                    model.generate(IDS, max_new_tokens=4, do_sample=False), steered_tokens
                )
            assert torch.equal(model.generate(IDS, max_new_tokens=4, do_sample=False), tokens)
    handle.detach()
    assert_close(logits(model), idle)
    owned = {
        id(m)
        for m in model.modules()
        if "steerfast" in type(getattr(m.forward, "__self__", m)).__module__
    }
    owned |= {id(m) for m in model.modules() if "steerfast" in repr(m.__dict__.get("_old_forward"))}
    assert not owned
    with attach(model) as again, again.use(PLAN):
        assert_close(logits(model), want)
