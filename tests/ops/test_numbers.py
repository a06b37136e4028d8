"""Where a formula divides or has a kink: gradients in closed form; and inputs that share memory."""

from __future__ import annotations

import pytest
import torch

from steerfast import ops, testing
from steerfast.ops import reference
from steerfast.ops import triton as triton_ops
from steerfast.testing import recipes

D = 8
E = torch.eye(D)


def jacobian(h, reads=(), delta=None, finish="none"):
    table = testing.Table(D)
    rows = [table.row(E[0]), table.row(E[1])]
    slot = table.slot(delta, reads(*rows) if reads else (), finish)
    steering = table.steering(torch.tensor([slot]), torch.ones(1))
    return torch.autograd.functional.jacobian(lambda row: ops.steer(row[None], steering)[0], h)


@pytest.mark.parametrize("finish", ["preserve", "shrink"])
def test_a_length_that_is_zero_has_the_subgradient_zero(finish):
    """|h| = 0 makes the row 0 whatever y is; y = 0 leaves the factor at 1."""
    assert torch.equal(jacobian(torch.zeros(D), delta=E[3], finish=finish), torch.zeros(D, D))
    ablated = jacobian(2.0 * E[0], lambda b1, _: recipes.ablate(b1), finish=finish)
    assert torch.equal(ablated, torch.eye(D) - torch.outer(E[0], E[0]))


@pytest.mark.parametrize("h", [torch.zeros(D), E[5]], ids=["zero", "across"])
def test_a_rotation_without_a_part_in_its_plane(h):
    """q = 0 has the subgradient 0, so that what is in the plane is taken away."""
    wanted = torch.diag(torch.tensor([0.0, 0.0] + [1.0] * (D - 2)))
    assert torch.equal(jacobian(h, lambda b1, b2: recipes.rotate_to(b1, b2, 0.5)), wanted)


@pytest.mark.parametrize("recipe", [recipes.add_relative, recipes.slerp])
def test_lengths_of_nothing(recipe):
    found = jacobian(torch.zeros(D), lambda b1, _: recipe(b1, 0.5))
    assert torch.equal(found, torch.eye(D))


def test_what_no_row_reads_is_in_no_gradient():
    """Slot -1 beside a table whose slot 0, and a gain, are not finite."""
    table = testing.Table(D)
    table.slot(E[0])
    steering = table.steering(torch.tensor([-1]), torch.tensor([torch.inf]))
    h = torch.randn(1, D, requires_grad=True)
    ops.steer(h, steering).sum().backward()
    assert torch.equal(h.grad, torch.ones(1, D))


@pytest.mark.parametrize("run", [ops, reference, triton_ops], ids=["fused", "reference", "triton"])
def test_in_place_refuses_what_overlaps(run):
    table = testing.Table(D)
    slots = torch.full((3,), table.slot(E[0]))
    steering, weight = table.steering(slots, torch.ones(3)), torch.ones(D)
    memory = torch.randn(3, 3 * D)
    flat = memory.flatten()
    whole = flat[: 3 * D].view(3, D)
    for x, residual in (
        (whole, whole),
        (whole, flat[1 : 1 + 3 * D].view(3, D)),
        (flat[2 * D : 5 * D].view(3, D), whole),
        (memory[:, :D], memory[:, D - 1 : 2 * D - 1]),
    ):
        for name, rest in (
            ("add_rms_norm_", (weight, 1e-6)),
            ("steer_add_rms_norm_", (weight, 1e-6, steering)),
            ("steer_halves_", (steering,)),
        ):
            before = memory.clone()
            with pytest.raises(ValueError, match=rf"^{name}: x and residual share .* x.clone\(\)"):
                getattr(run, name)(x, residual, *rest)
            assert torch.equal(memory, before)


@pytest.mark.parametrize("run", [ops, reference], ids=["fused", "reference"])
def test_traced_in_place(run):
    """What is traced has no addresses, so nothing may ask for them."""
    x, residual, weight = torch.randn(3, D), torch.randn(3, D), torch.ones(D)
    wanted = reference.add_rms_norm(x, residual, weight, 1e-6)
    torch._dynamo.reset()
    step = torch.compile(run.add_rms_norm_, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        step(x, residual, weight, 1e-6)
    assert torch.equal(residual, wanted[0])
    assert torch.allclose(x, wanted[1], rtol=1e-6)


@pytest.mark.parametrize("run", [ops, reference], ids=["fused", "reference"])
def test_rows_that_lie_between_each_other_do_not_overlap(run):
    memory, weight = torch.randn(3, 2 * D + 1), torch.ones(D)
    x, residual = memory[:, :D], memory[:, D : 2 * D]
    wanted = run.add_rms_norm(x.clone(), residual.clone(), weight, 1e-6)
    run.add_rms_norm_(x, residual, weight, 1e-6)
    assert torch.equal(residual, wanted[0])
    assert torch.equal(x, wanted[1])


def test_inputs_of_functional_ops_may_be_one_or_expanded():
    one, weight = torch.randn(1, D), torch.ones(D)
    rows = one.expand(4, D)
    stream, normed = ops.add_rms_norm(rows, rows, weight, 1e-6)
    assert torch.equal(stream, (2 * one).repeat(4, 1))
    assert torch.equal(normed, ops.add_rms_norm(one, one, weight, 1e-6)[1].repeat(4, 1))
