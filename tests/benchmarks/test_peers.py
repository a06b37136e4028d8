"""The peers' benchmark without any peer: the oracle, and what ``check`` says of right and wrong adapters."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from peers import agreement, registry, tiny
from peers.exact import in_float64, oracle
from peers.peer import Peer, Task, logits_of
from peers.rig import Rig, distance, padded


@pytest.fixture(scope="module")
def llama():
    return tiny.tiny_llama()


def adapter(apply, operations=("add",)):
    return Peer("test", "", "main", "", apply, frozenset(operations), False, "", "")


def task(operation="add", layers=(5,), coefficient=1.5, start=0):
    generator = torch.Generator().manual_seed(1)
    vectors = {layer: 0.5 * torch.randn(256, generator=generator) for layer in layers}
    return Task(operation, vectors, coefficient, start)


def head64(exact, stream):
    """Logits of the last layer's output."""
    norm = exact.model.norm
    rms = stream.square().mean(-1, keepdim=True).add(norm.variance_epsilon).sqrt()
    return (stream / rms * norm.weight) @ exact.lm_head.weight.T


@pytest.mark.parametrize("operation", ["add", "preserve", "ablate", "add_from"])
@torch.inference_mode()
def test_the_oracle_is_the_formula_at_the_last_layer(llama, operation):
    exact = in_float64(llama)
    ids = torch.randint(8, 1000, (2, 7), generator=torch.Generator().manual_seed(2))
    streams = []
    handle = exact.model.layers[7].register_forward_hook(lambda *call: streams.append(call[2]))
    exact(input_ids=ids)
    handle.remove()
    (h,) = streams
    asked = task(operation, layers=(7,), start=3)
    v = asked.vectors[7].double()
    y = h + 1.5 * v
    unit = v / v.norm()
    wanted = {
        "add": y,
        "preserve": y / y.norm(dim=-1, keepdim=True) * h.norm(dim=-1, keepdim=True),
        "ablate": h - (h @ unit)[..., None] * unit,
        "add_from": torch.cat([h[:, :3], y[:, 3:]], 1),
    }[operation]
    logits = oracle(exact, asked, input_ids=ids)
    assert distance(logits, head64(exact, wanted)) < 1e-14
    assert distance(logits, oracle(exact, None, input_ids=ids)) > 1e-2


@pytest.mark.parametrize("name", ["hook", "paper", "steerfast"])
def test_our_own_adapters_agree_in_every_case(llama, name):
    peer = registry.PEERS[name]
    outcomes = agreement.check(peer, llama, tiny.tiny_tokenizer())
    assert outcomes.keys() == agreement.CASES.keys()
    for case, outcome in outcomes.items():
        operation = agreement.CASES[case].operation
        if operation in peer.operations or operation is None:
            if (name, case) == ("hook", "preserve, padding kept"):  # it does not know padding
                assert outcome.status == "has none"
            else:
                assert outcome.status == "ok", (case, outcome)
                assert outcome.error <= agreement.CASES[case].limit
        else:
            assert outcome.status == "has none"


def test_a_wrong_adapter_is_found_out(llama):
    @contextmanager
    def doubled(model, tokenizer, asked):
        twice = asked._replace(coefficient=2 * asked.coefficient)
        with registry.PEERS["hook"].apply(model, tokenizer, twice) as call:
            yield call

    outcomes = agreement.check(adapter(doubled), llama, None)
    assert {outcomes[case].status for case in ("batch 1", "5 layers", "decode")} == {"wrong"}
    assert outcomes["batch 1"].error > 1e-2
    assert outcomes["undone"].status == "ok"


def test_an_adapter_that_steers_the_first_row_or_chunk_alone_is_found_out(llama):
    @contextmanager
    def first_row(model, tokenizer, asked):
        def hook(module, inputs, output):
            output = output.clone()
            output[0] += asked.coefficient * asked.vectors[layer]
            return output

        (layer, *_) = asked.vectors
        handle = model.model.layers[layer].register_forward_hook(hook)
        yield logits_of(model)
        handle.remove()

    outcomes = agreement.check(adapter(first_row), llama, None)
    assert outcomes["batch 1"].status == "ok"
    assert outcomes["batch 4"].status == "wrong"


def test_what_an_adapter_leaves_behind_is_found_out():
    llama = tiny.tiny_llama()

    @contextmanager
    def forgetful(model, tokenizer, asked):
        hook = registry.PEERS["hook"].apply(model, tokenizer, asked)
        kept.append(hook)
        yield hook.__enter__()

    kept = []
    case = agreement.CASES["undone"]
    with torch.no_grad():
        error = case.run(Rig(adapter(forgetful), llama, None, None))
    assert error > case.limit == 0


@pytest.mark.parametrize("name", ["hook", "steerfast"])
def test_padding_that_is_rescaled_by_its_own_norm_is_found_out(llama, name):
    """By which adapter the rest is steered makes no difference: each is compared with itself, steering nothing."""
    installed = registry.PEERS[name]

    @contextmanager
    def rescaling(model, tokenizer, asked):
        def hook(module, inputs, output):
            rescaled = (output * output.norm(dim=-1, keepdim=True)) / output.norm(
                dim=-1, keepdim=True
            )
            return rescaled.where(padding[..., None], output)

        handle = model.model.layers[2].register_forward_hook(hook)
        with installed.idle(model, tokenizer) as call:
            yield call
        handle.remove()

    @contextmanager
    def kept(model, tokenizer, asked):
        with installed.idle(model, tokenizer) as call:
            yield call

    case = agreement.CASES["preserve, padding kept"]
    padding = padded(Rig(installed, llama, None, None), "left")["attention_mask"] == 0
    errors = {}
    for apply in (rescaling, kept):
        peer = replace(adapter(apply, ["preserve"]), idle=installed.idle)
        with torch.no_grad():
            errors[apply.__name__] = case.run(Rig(peer, llama, None, None))
    assert errors["kept"] == case.limit == 0
    assert 0 < errors["rescaling"] < agreement.LIMIT


def test_a_peer_that_says_nothing_of_being_idle_is_compared_with_the_plain_model(llama):
    ids = torch.randint(8, 1000, (1, 4))
    with torch.no_grad(), adapter(None).idle(llama, None) as call:
        assert torch.equal(call(ids), llama(ids).logits)


def test_an_adapter_that_raises_fails_with_its_reason(llama):
    @contextmanager
    def raising(model, tokenizer, asked):
        raise NotImplementedError("no cache\nmore lines")
        yield

    outcomes = agreement.check(adapter(raising), llama, None)
    assert outcomes["decode"] == (None, "fails", "NotImplementedError: no cache")
    assert outcomes["ablate"].status == "has none"


def test_not_a_number_is_infinitely_wrong():
    nan = torch.full((1, 2, 3), float("nan"))
    assert distance(nan, torch.ones(1, 2, 3)) == float("inf")
    with pytest.raises(ValueError, match="wanted"):
        distance(torch.ones(1, 1, 3), torch.ones(1, 2, 3))
