"""A table that keeps its programs from kernels until a plan has some, as ``attach`` makes it on a GPU."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from recorded_graph import RecordedGraph
from tiny_llama import tiny_llama

from steerfast import Plan, SteerfastError, SteeringVector, Term, attach, steer
from steerfast.models import patch
from steerfast.table.table import Table

HIDDEN, LAYERS = 32, 2


def vector(seed: int) -> SteeringVector:
    rng = torch.Generator().manual_seed(seed)
    return SteeringVector(
        f"v{seed}", {layer: torch.randn(HIDDEN, generator=rng) for layer in range(LAYERS)}
    )


CONSTANT = steer(vector(1), 2.0)
READS = Plan((Term(vector(2), operator="ablate"), Term(vector(1), 1.0)))


def late(**room: int) -> Table:
    return Table(LAYERS, HIDDEN, reads_late=True, **room)


def test_programs_are_shown_with_the_first_plan_that_has_some() -> None:
    table = late(programs=7)
    whole = table.shown_reads.whole
    assert table.reads.shape == (0, 16, 12)
    constant = table.acquire(CONSTANT)
    assert table.reads.shape == (0, 16, 12)
    reads = table.acquire(READS)
    assert table.reads.data_ptr() == whole.data_ptr()
    assert table.reads.shape == (7, 16, 12)
    assert table.reads[reads.programs[0]].any()
    for entry in (constant, reads):
        table.release(entry)
    assert len(table.reads) == 7  # for good
    assert len(Table(LAYERS, HIDDEN, programs=7).reads) == 7
    assert late(programs=0).reads.shape == (0, 16, 12)


def test_where_a_graph_was_captured_such_a_plan_is_refused_and_nothing_changes() -> None:
    table = late(programs=7)
    table.shown_reads.note_capture()
    kept = table.acquire(CONSTANT)
    for ask in (table.acquire, table.check_room, lambda plan: table.exchange(kept, plan)):
        with pytest.raises(SteerfastError, match=r"attach\(model, programs=7\)"):
            ask(READS)
    assert table.entries == (kept,)
    assert kept.holders == 1
    assert len(table.reads) == 0
    table.shown_reads.show()  # of whoever would like to be ready for any plan
    assert len(table.reads) == 0

    table = late(programs=7)
    table.release(table.acquire(READS))
    table.shown_reads.note_capture()  # of kernels that know reads
    table.acquire(READS)


def test_a_capture_does_not_begin_between_the_check_and_the_showing() -> None:
    """It waits for the table's lock, under which both are done."""
    table, began = late(), threading.Event()

    def capture() -> None:
        began.set()
        table.shown_reads.note_capture()

    with table.lock:
        thread = threading.Thread(target=capture)
        thread.start()
        began.wait()
        table.acquire(READS)
        assert len(table.reads) > 0
    thread.join()
    table.release(table.acquire(READS))


@pytest.mark.parametrize("table", [late(programs=3), Table(LAYERS, HIDDEN, programs=3)])
def test_a_copy_and_a_moved_table_keep_programs_back_as_before(table: Table) -> None:
    shown = len(table.reads)
    assert len(copy.deepcopy(table).reads) == shown
    table.to(torch.device("cpu"))
    assert len(table.reads) == shown


# --- of attached models


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backends of this machine count as having kernels that are faster without reads."""
    monkeypatch.setattr(patch, "FASTER_WITHOUT_READS", ("cuda", "triton", "cpu", "reference"))


def tiny():
    return tiny_llama(hidden=HIDDEN, layers=LAYERS, vocabulary=64, heads=2, spread=0.2, seed=1)


IDS = torch.randint(1, 64, (2, 5), generator=torch.Generator().manual_seed(3))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def test_only_where_kernels_are_faster_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for backends in (("cuda", "triton"), ("cpu", "reference")):
        monkeypatch.setattr(patch, "FASTER_WITHOUT_READS", backends)
        for programs in (None, 0, 5):
            with attach(tiny(), slots=2, programs=programs) as handle:
                shown[backends, programs] = len(handle.table.reads)
    default = 2 * (LAYERS + 1)
    assert shown == {
        (("cuda", "triton"), None): default,
        (("cuda", "triton"), 0): 0,
        (("cuda", "triton"), 5): 5,
        (("cpu", "reference"), None): 0,
        (("cpu", "reference"), 0): 0,
        (("cpu", "reference"), 5): 5,
    }


def test_the_default_on_a_gpu_is_for_plans_of_constants() -> None:
    assert patch.FASTER_WITHOUT_READS == ("cuda", "triton")


@pytest.mark.usefixtures("as_on_a_gpu")
def test_steering_is_the_same_before_and_after() -> None:
    with attach(tiny(), programs=64) as early:
        wanted = {}
        for name, plans in (("constant", CONSTANT), ("reads", READS), ("both", [CONSTANT, READS])):
            with early.use(plans):
                wanted[name] = logits(early.model)
    with attach(tiny()) as handle:
        with handle.use(CONSTANT):
            assert torch.equal(logits(handle.model), wanted["constant"])
        assert len(handle.table.reads) == 0
        with handle.use(READS):
            assert torch.equal(logits(handle.model), wanted["reads"])
        with handle.use([CONSTANT, READS]):
            assert torch.equal(logits(handle.model), wanted["both"])
        with handle.use(CONSTANT):
            assert torch.equal(logits(handle.model), wanted["constant"])


@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_compiled_model_is_compiled_once_more() -> None:
    """Its graphs guard on the tensor's shape."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    with attach(tiny()) as handle:
        compiled = torch.compile(
            handle.model.forward, fullgraph=True, dynamic=False, backend="eager"
        )

        def run() -> torch.Tensor:
            with torch.no_grad():
                return compiled(IDS, use_cache=False).logits

        made = []
        for plans in (None, CONSTANT, READS, CONSTANT, [READS, None], None):
            with handle.use(plans):
                got = run()
                torch.testing.assert_close(got, logits(handle.model), rtol=1e-5, atol=1e-5)
            made.append(counters["stats"]["unique_graphs"])
        assert made == [1, 1, 2, 2, 2, 2]
    torch._dynamo.reset()


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("how", ["eager", "compiled", "loop"])
def test_after_a_capture_a_plan_that_reads_is_refused(how: str) -> None:
    with attach(tiny(), slots=2) as handle:
        model = handle.model
        if how == "loop":
            with handle.use(CONSTANT), handle.generating(IDS) as loop:
                loop.step(IDS.shape[1])
                RecordedGraph.of(lambda: logits(model))
        else:
            run = model.forward
            if how == "compiled":
                torch._dynamo.reset()
                run = torch.compile(model.forward, fullgraph=True, dynamic=False, backend="eager")
            with torch.no_grad():
                run(IDS, use_cache=False)
                RecordedGraph.of(lambda: run(IDS, use_cache=False))
        with pytest.raises(SteerfastError, match=rf"attach\(model, programs={2 * (LAYERS + 1)}\)"):
            handle.use(READS)
        with handle.use(CONSTANT) as use:
            wanted = logits(model)
            with pytest.raises(SteerfastError, match="of kernels that know none"):
                use.change(READS)
            assert torch.equal(logits(model), wanted)
    torch._dynamo.reset()
