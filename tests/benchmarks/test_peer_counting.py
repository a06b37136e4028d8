"""What a step costs without a clock: kernels, bytes, syncs."""

from __future__ import annotations

import pytest
import torch

from peers import counting, registry, stepping, tiny


@pytest.fixture(scope="module")
def llama():
    return tiny.tiny_llama()


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
        with registry.PEERS["steerfast"].apply(llama, None, stepping.task_for(llama, 1)) as call:
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
        with (
            registry.PEERS["hook"].apply(llama, None, stepping.task_for(llama, 1)) as call,
            counting.count() as hooked,
        ):
            call(ids)
    assert hooked.kernels - plain.kernels == 1
    assert hooked.bytes - plain.bytes == 4 * (2 * 2 * 4 * 256 + 256)
