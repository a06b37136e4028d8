"""A patched model under every operator equals a stock model with a plain hook that spells the formula out."""

from __future__ import annotations

import oracle
import pytest
import torch

from steerfast import Gate, Plan, SteeringVector, Term, attach

LAYER = 1


def vector(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector(f"v{seed}", {LAYER: scale * torch.randn(64, generator=generator)})


V, W, KEY = vector(1, 2.0), vector(2), vector(3)


def row(one):
    return one.at(LAYER).double().tolist()


def unit(one):
    direction = one.at(LAYER).double()
    return (direction / direction.norm()).tolist()


def plane():
    first, other = torch.tensor(unit(V)), torch.tensor(row(W))
    rest = other.double() - (other.double() @ first.double()) * first.double()
    return unit(V), (rest / rest.norm()).tolist()


def span():
    both = torch.tensor([row(V), row(W)], dtype=torch.float64)
    return torch.linalg.qr(both.T).Q.T.tolist()


GATE = Gate("hard", KEY, bias=0.5)
PLANS = {
    "ablate a plane": (
        Plan((Term(V, operator="ablate"), Term(W, operator="ablate"))),
        oracle.Plan([oracle.Term(oracle.ablate, (span(),))]),
    ),
    "gated add, relative, preserve": (
        Plan((Term(V, gate=GATE), Term(W, 0.2, operator="add_relative")), "preserve"),
        oracle.Plan(
            [
                oracle.Term(oracle.add, (row(V), 1.0), oracle.hard(row(KEY), 0.5)),
                oracle.Term(oracle.add_relative, (unit(W), 0.2)),
            ],
            "preserve",
        ),
    ),
    "clamp and floor": (
        Plan((Term(V, operator="clamp", target=2.0), Term(W, operator="floor", target=1.0))),
        oracle.Plan(
            [oracle.Term(oracle.clamp, (unit(V), 2.0)), oracle.Term(oracle.floor, (unit(W), 1.0))]
        ),
    ),
    "rotate": (
        Plan((Term(V, operator="rotate_by", second=W, angle=0.9),)),
        oracle.Plan([oracle.Term(oracle.rotate_by, (*plane(), 0.9))]),
    ),
    "slerp and a constant": (
        Plan((Term(V, 0.3, operator="slerp"), Term(W, -1.0))),
        oracle.Plan(
            [oracle.Term(oracle.slerp, (unit(V), 0.3)), oracle.Term(oracle.add, (row(W), -1.0))]
        ),
    ),
    "map, sigmoid": (
        Plan(
            (
                Term(
                    V,
                    0.4,
                    operator="map",
                    read=W,
                    bias=0.1,
                    gate=Gate("sigmoid", KEY, bias=-0.2),
                ),
            )
        ),
        oracle.Plan(
            [oracle.Term(oracle.map_, (row(W), row(V), 0.4, 0.1), oracle.sigmoid(row(KEY), -0.2))]
        ),
    ),
}


def hook(spelled, rows=None):
    """Steers the rows of a batch (all, or those listed) at the layer's output."""

    def after(module, args, out):
        new = out.clone()
        for b in range(out.shape[0]) if rows is None else rows:
            for t in range(out.shape[1]):
                new[b, t] = torch.tensor(spelled.steer(out[b, t].double().tolist(), 1.0))
        return new

    return after


@pytest.mark.parametrize("name", PLANS)
def test_forward_and_generation_match_a_hook(name, tiny):
    plan, spelled = PLANS[name]
    model = tiny.model
    ids = torch.randint(2, 200, (2, 5), generator=torch.Generator().manual_seed(7))
    registered = model.model.layers[LAYER].register_forward_hook(hook(spelled))
    with torch.inference_mode():
        wanted = model(ids).logits
        generated = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=1)
    registered.remove()
    with torch.inference_mode():
        plain = model(ids).logits
    assert (plain - wanted).abs().max() > 1e-2, "the plan changes nothing, so nothing is tested"
    with attach(model).use(plan), torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-4, atol=1e-4)
        again = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=1)
    assert torch.equal(again, generated)


def test_each_row_its_own_operators(tiny):
    model = tiny.model
    ids = torch.randint(2, 200, (len(PLANS) + 1, 4), generator=torch.Generator().manual_seed(8))
    wanted = []
    with torch.inference_mode():
        wanted.append(model(ids[:1]).logits)
        for index, (_, spelled) in enumerate(PLANS.values(), start=1):
            registered = model.model.layers[LAYER].register_forward_hook(hook(spelled))
            wanted.append(model(ids[index : index + 1]).logits)
            registered.remove()
    handle = attach(model)
    with handle.use([None, *(plan for plan, _ in PLANS.values())]), torch.inference_mode():
        result = model(ids).logits
    torch.testing.assert_close(result, torch.cat(wanted), rtol=1e-4, atol=1e-4)
    assert handle.report().steered == 4 * len(PLANS)


def test_gradients_flow_through_reading_terms(tiny):
    """d loss / d embeddings under a reading plan equals that of the hook's formula, by autograd."""
    model = tiny.model
    ids = torch.randint(2, 200, (1, 4), generator=torch.Generator().manual_seed(9))
    b = torch.tensor(unit(V), dtype=torch.float32)

    def loss():
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        model(inputs_embeds=embedded).logits.pow(2).mean().backward()
        return embedded.grad

    registered = model.model.layers[LAYER].register_forward_hook(
        lambda m, a, out: out + (2.0 - out @ b)[..., None] * b
    )
    wanted = loss()
    registered.remove()
    with attach(model).use(Plan((Term(V, operator="clamp", target=2.0),))):
        result = loss()
    torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-6)
