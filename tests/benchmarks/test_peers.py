"""The peers' benchmark without any peer: the oracle, what ``check`` says of right and wrong adapters, the counting."""

from __future__ import annotations

import re
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks" / "peers"
sys.path.insert(0, str(FOLDER))
try:
    import agreement
    import counting
    import environments
    import registry
    import tiny
    from peer import Peer, Task, logits_of
finally:
    sys.path.remove(str(FOLDER))


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
    exact = agreement.in_float64(llama)
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
    logits = agreement.oracle(exact, asked, input_ids=ids)
    assert agreement.distance(logits, head64(exact, wanted)) < 1e-14
    assert agreement.distance(logits, agreement.oracle(exact, None, input_ids=ids)) > 1e-2


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
        error = case.run(agreement.Rig(adapter(forgetful), llama, None, None))
    assert error > case.limit == 0


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
    assert agreement.distance(nan, torch.ones(1, 2, 3)) == float("inf")
    with pytest.raises(ValueError, match="wanted"):
        agreement.distance(torch.ones(1, 1, 3), torch.ones(1, 2, 3))


# -- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", [True, False])
def test_counting_known_operations(inference):
    h, v = torch.randn(4, 8), torch.randn(8)
    with torch.inference_mode(inference), counting.count() as counts:
        (h.view(2, 2, 8).transpose(0, 1)[..., 1:].detach().unsqueeze(0).expand(3, -1, -1, -1))
        torch.empty(5)
        assert counts.kernels == 0
        h + 2 * v  # 2 * v: 8 + 8 floats; h + it: 32 + 8 + 32
        assert (counts.kernels, counts.bytes) == (2, 4 * (16 + 72))
        h.add_(v)
        assert (counts.kernels, counts.bytes) == (3, 4 * (16 + 72 + 72))
        assert counts.syncs == 0
        assert h.sum().item() == float(h.sum())
        assert (counts.kernels, counts.syncs) == (5, 2)
        bool((v > 0).any())
        assert counts.syncs == 3
        v[v > 0]
        assert counts.syncs == 4
    kernels = counts.kernels
    h + v
    assert counts.kernels == kernels


def test_an_op_of_ours_counts_as_one(llama):
    ids = torch.randint(8, 1000, (1, 4))
    with torch.inference_mode():
        with counting.count() as stock:
            llama(ids)
        with registry.PEERS["steerfast"].apply(llama, None, task()) as call:
            call(ids)
            with counting.count() as ours:
                call(ids)
    mine = {name: number for name, number in ours.names.items() if name.startswith("steerfast::")}
    assert sum(mine.values()) >= 2 * llama.config.num_hidden_layers
    assert ours.kernels < stock.kernels
    assert ours.bytes < stock.bytes  # of the table's bank, one row is read


def test_a_bare_hook_costs_one_kernel(llama):
    ids = torch.randint(8, 1000, (2, 4))
    with torch.inference_mode():
        with counting.count() as plain:
            llama(ids)
        with registry.PEERS["hook"].apply(llama, None, task()) as call, counting.count() as hooked:
            call(ids)
    assert hooked.kernels - plain.kernels == 1
    assert hooked.bytes - plain.bytes == 4 * (2 * 2 * 4 * 256 + 256)


# -- environments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", environments.NAMES)
def test_every_requirement_is_pinned(name):
    lines = (FOLDER / "requirements" / f"{name}.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    names = []
    for pin in pins:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][\w.]*", pin), pin
        names.append(pin.partition("==")[0].lower().replace("_", "-"))
    assert len(set(names)) == len(names)
    # What an environment sees below is the same for all; none may replace the stack that is measured.
    assert not {"torch", "transformers", "torchvision", "tokenizers", "triton"} & set(names)
    for peer in registry.peers_of(name).values():
        assert not peer.package or peer.package in names


def test_every_peer_has_an_environment_and_the_agpl_one_of_its_own():
    assert set(environments.NAMES) == {peer.environment for peer in registry.PEERS.values()}
    for peer in registry.PEERS.values():
        assert "AGPL" not in peer.licence or peer.environment == "apart"
        assert peer.operations <= {"add", "preserve", "ablate", "add_from"}


def test_the_package_imports_no_peer():
    """Two of them are under the AGPL: benchmarks alone may load them, in their own environment."""
    import steerfast

    names = {peer.package.replace("-", "_") for peer in registry.PEERS.values() if peer.package}
    assert {"saklas", "interlens"} <= names
    package = Path(steerfast.__file__).parent
    for path in package.rglob("*.py"):
        found = re.findall(r"^\s*(?:from|import)\s+(\w+)", path.read_text(), flags=re.MULTILINE)
        assert not names & set(found), path
    others = [path for path in FOLDER.parent.glob("*.py") if path.parent != FOLDER]
    for path in others:
        assert not re.search(r"^\s*(?:from|import)\s+(saklas|interlens)", path.read_text(), re.M)
