"""What the stages of ``gpu_check.sh`` run, on the CPU: the conformance suite on a device, kernels compiled ahead, single calls."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gpu import conformance, exact_calls, marked_tests, op_speed, stand_in, triton_ahead
from harness import decode_runners, shapes
from steerfast import ops
from steerfast.testing import suite

BENCHMARKS = Path(conformance.__file__).parents[1]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(stand_in, "DRY", True)
    monkeypatch.setattr(stand_in, "DEVICE", "cpu")


# -- conformance ----------------------------------------------------------------------------------


def test_makers_make_the_cases_and_nothing_before_they_are_asked():
    given = ([torch.float32], [7, 16], [3])
    makers = list(suite.makers(*given))
    assert [make().id for make in makers] == [case.id for case in suite.cases(*given)]
    suite._case.cache_clear()
    list(suite.makers(*given))
    assert suite._case.cache_info().currsize == 0


def test_what_says_most_comes_first():
    """Batches; then wide rows of all dtypes in turn, so that a run that ends early has met every kernel."""
    names = [name for name, _ in conformance.checks("cuda", few=False)]
    assert len(names) == len(set(names)) > 700
    assert all(name.startswith("batches") for name in names[:9])
    first = names[9 : 9 + 3 * len(conformance.WIDE) * 2]
    for dtype in conformance.KINDS:
        for width in conformance.WIDE:
            assert f"mixed {dtype} {width} 33 0 0" in first
    assert [f"torch.{kind}" in name for name, kind in zip(first, ("bfloat16", "float32", "float16"), strict=False)] == [True] * 3  # fmt: skip


def test_the_suite_of_triton_is_what_was_compiled_ahead():
    widths = {name.split()[2] for name, _ in conformance.checks("triton", few=False)}
    assert widths == {"576", "4096", "16384"} == {str(width) for width in conformance.TRITON_WIDTHS}
    jobs = triton_ahead.jobs("sm_90", conformance.TRITON_WIDTHS)
    assert (
        len(jobs) == len(set(jobs)) == 3 * 2 * 4 * 2
    )  # widths, dtypes, ops, with reads and without
    assert ("sm_90", 4096, "bf16", ()) in jobs
    assert ("sm_90", 4096, "fp32", ("NORM", "READS")) in jobs


class Told(list):
    put = list.append


def worked(monkeypatch, checks, end=None):
    monkeypatch.setattr(conformance, "checks", lambda kind, few: checks)
    monkeypatch.setattr(stand_in, "cuda_library", lambda: ops)
    told = Told()
    before = torch.get_num_threads()
    conformance.work("cuda", False, 0, 1, time.time() + 1e6 if end is None else end, told)
    torch.set_num_threads(before)
    return told


def wrong(backend):
    raise AssertionError("element 3 is out\nand more")


def lost(backend):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_failure_is_told_and_the_next_is_checked(monkeypatch):
    told = worked(monkeypatch, [("a", lambda backend: None), ("b", wrong), ("c", lambda backend: None)])  # fmt: skip
    assert told == [("a", None), ("b", "AssertionError: element 3 is out"), ("c", None), None]


def test_after_an_error_of_the_device_nothing_is_checked(monkeypatch):
    told = worked(monkeypatch, [("a", lost), ("b", lambda backend: None)])
    assert [one and one[0] for one in told] == ["a", None]


def test_when_its_time_is_up_it_ends(monkeypatch):
    assert worked(monkeypatch, [("a", lambda backend: None)], end=0.0) == [None]


def program(*command, **more):
    """A stage's program in a process of its own, in a dry run."""
    path = f"{BENCHMARKS.parent}:{BENCHMARKS}"
    return subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "STEERFAST_DRY_RUN": "1", "PYTHONPATH": path, **more},
    )


def test_out_of_time_it_says_how_far_it_came():
    """Begun, as it is told, long before it has been imported."""
    done = program("gpu.conformance", "--backend", "triton", "--few", "--seconds", "50", STEERFAST_STAGE_BEGUN="1.0")  # fmt: skip
    last = done.stdout.splitlines()[-1]
    assert last.startswith("so far: 0 of 3 passed, 0 failed, then time was up"), done.stderr
    assert done.returncode == 1  # nothing was shown


class DependsOnItsBatch:
    """The ops, but that a row is rounded otherwise beside 130 others."""

    @staticmethod
    def steer_add_rms_norm(x, *given):
        stream, normed = ops.steer_add_rms_norm(x, *given)
        return (stream, normed) if len(x) != 131 else (torch.nextafter(stream, stream + 1), normed)


def test_rows_in_batches():
    (make,) = list(suite.makers([torch.float32], [16], [33]))[:1]
    conformance.check_batches(make, ops)
    with pytest.raises(AssertionError, match="rows in a batch of 131 differ"):
        conformance.check_batches(make, DependsOnItsBatch)


def test_a_case_without_reads_is_one_of_deltas_alone():
    (make, *_) = suite.makers([torch.float32], [16], [33])
    case = conformance.without_reads(make())
    assert len(case.steering.reads) == 0
    assert not case.steering.records[:, 3].any()
    case.check(*ops.steer_add_rms_norm(*case.arguments))


# -- calls and times ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["additive", "mixed"])
def test_tensors_are_exactly_as_large_as_they_have_to_be(monkeypatch, form):
    """What a memory checker needs: no operand is a part of something larger. Rows are steered, and others are not."""
    met = []

    class Watching:
        def __getattr__(self, name):
            return lambda *given: met.append((name, given))

    exact_calls.call(Watching(), form, torch.bfloat16, 64, 5)
    assert len(met) == 5
    for _, given in met:
        steering = next(one for one in given if hasattr(one, "row_slot"))
        assert set((steering.row_slot < 0).tolist()) == {True, False}
        for tensor in (*(one for one in given if isinstance(one, torch.Tensor)), steering.row_slot):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_tables_are_made_once_for_all_operands(monkeypatch):
    made = []
    table = op_speed.op_forms.Table

    def counted(*given, **more):
        made.append(given)
        return table(*given, **more)

    monkeypatch.setattr(op_speed.op_forms, "Table", counted)
    op_speed.op_forms._shared_table.cache_clear()
    for rows in (1, 2, 4):
        op_speed.steerings(48, rows)
    assert len(made) == 2 + 2  # additive and mixed; and as many plans as rows, of 2 and of 4


def test_nothing_overlaps_where_it_is_not_to(monkeypatch):
    """The switch is off while a call is captured, and as it was before thereafter."""
    state = [True]

    def select(on):
        state[0], before = on, state[0]
        return before

    namespace = type("Ops", (), {"select_cuda_overlap": staticmethod(select)})
    monkeypatch.setattr(torch.ops, "steerfast", namespace)
    seen = []
    (call,) = op_speed.without_overlap([lambda: seen.append(state[0])])
    call()
    assert (seen, state) == ([False], [True])


def test_lines_end_when_there_is_no_time_for_more(capsys):
    lines = ({"bench": "gpu ops", "D": 1, "N": n, "us": {}} for n in range(9))
    assert len(list(op_speed.within(0.0, lines, 9))) == 1
    assert "so far: 1 of 9 lines, then time was up" in capsys.readouterr().out


def test_files_of_marked_tests_are_found(tmp_path, monkeypatch):
    mark = ".".join(("@pytest", "mark", "gpu"))  # in one word it would make this file one of them
    (tmp_path / "vllm").mkdir()
    for name, text in (("test_a.py", mark), ("test_b.py", ""), ("vllm/test_c.py", mark)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(marked_tests, "TESTS", tmp_path)
    assert [path.name for path in marked_tests.files()] == ["test_a.py"]


# -- decode steps ---------------------------------------------------------------------------------


def test_a_step_says_its_mask_wherever_it_runs(monkeypatch):
    """The prompt's of its own length; then the same in warm-ups and in the capture, of what the cache holds by then."""
    model = shapes.random_model("tiny", torch.float32, 1)
    forward, given = type(model.model).forward, []

    def watched(self, *args, attention_mask=None, **more):
        given.append(None if attention_mask is None else list(attention_mask.shape))
        return forward(self, *args, attention_mask=attention_mask, **more)

    monkeypatch.setattr(type(model.model), "forward", watched)
    with torch.inference_mode():
        decode_runners.Runner(model, torch.ones(2, 5, dtype=torch.int64), "graph")
    assert given == [[2, 5], *[[2, 6]] * (3 + 1)]
