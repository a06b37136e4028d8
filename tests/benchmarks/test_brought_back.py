"""What a GPU run brought back: merged once, refused where it would say something false, shown with the device's name."""

from __future__ import annotations

import json

import pytest

import report
from gpu import keeping
from gpu.boxed import Outcome
from harness import brought_back, results
from tables import backends, gpu_runs, speed

ABOUT = {
    "commit": "abc1234", "device": "NVIDIA H200", "seed": 0, "date": "2026-12-02T10:00:00+00:00",
    "versions": {"torch": "2.11.0+cu130", "transformers": "5.17.0", "cuda": "13.0"},
}  # fmt: skip


def figure(middle):
    return {"median": middle, "p20": 0.9 * middle, "p80": 1.1 * middle}


def ratio(middle):
    return {"ratio": middle, "low": middle - 0.01, "high": middle + 0.01}


STEP = {
    "bench": "decode", "model": "llama-2-7b shape, random", "dtype": "bfloat16", "mode": "graph", "batch": 64, "vectors": 8,
    "operator": "add", "plans": "distinct", "distinct": 64, "steps": 150, "backend": "cuda",
    "ms": {name: figure(5.0) for name in ("stock", "hooks", "patched", "steered")},
    "ratios": {"steered_over_patched": ratio(1.003), "steered_over_stock": ratio(0.97), "a_over_a": ratio(1.0)},
    **ABOUT,
}  # fmt: skip
OP = {
    "bench": "gpu ops", "dtype": "bfloat16", "D": 4096, "N": 16384, "rounds": 7, "operands": "in memory",
    "us": {name: figure(130.0) for name in ("launch", "copy", "unsteered", "steered")},
    "of_copy": {"steered": ratio(0.93)}, "steered_over_unsteered": ratio(1.02), "a_over_a": ratio(1.0), **ABOUT,
}  # fmt: skip
CHAIN = {
    "bench": "gpu chain", "dtype": "bfloat16", "D": 4096, "N": 1, "rounds": 7, "us": {}, "a_over_a": ratio(1.0),
    "added_us": {name: figure(0.7) for name in gpu_runs.CHAINED}, **ABOUT,
}  # fmt: skip
RUN = {"bench": "gpu check", "built": None, **ABOUT}


@pytest.fixture(autouse=True)
def empty(monkeypatch, tmp_path):
    """A copy of the committed results, less what is of a GPU, to be added to."""
    folder = tmp_path / "results"
    folder.mkdir()
    for path in results.COMMITTED.glob("*.jsonl"):
        lines = [line for line in results.every(path.stem) if not results.on_gpu(line)]
        (folder / path.name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(results, "RESULTS", folder)


@pytest.fixture
def brought(tmp_path):
    """OUT of a run with these result lines."""

    def brought(lines, dry=False, more=""):
        folder, out = tmp_path / "run", tmp_path / "out"
        kept = keeping.Keeping(out, folder, dry)
        for name, those in lines.items():
            text = "".join(json.dumps(line) + "\n" for line in those)
            (folder / "results" / f"{name}.jsonl").write_text(text + more)
        kept.add(Outcome("conformance-cuda", "passed", 58.0, "627 of 627 passed, 0 failed"))
        kept.add(Outcome("decode", "out of time", 190.0, "1 result line"))
        return out

    return brought


WHOLE = {"decode": [STEP], "gpu_ops": [OP, CHAIN], "gpu_check": [RUN]}


def test_it_is_merged_once(brought):
    before = results.every("decode")
    out = brought(WHOLE)
    assert brought_back.merge(out) == {"decode": 1, "gpu_ops": 2, "gpu_check": 1}
    assert results.every("decode") == [*before, STEP]
    assert results.every("gpu_check")[0]["outcomes"][0]["said"] == "627 of 627 passed, 0 failed"
    assert set(brought_back.merge(out).values()) == {0}
    assert results.every("decode") == [*before, STEP]


def test_a_line_that_was_being_written_is_left_out(brought):
    assert brought_back.merge(brought(WHOLE, more='{"bench": "dec'))["decode"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"commit": "unknown"}, "no known commit; set STEERFAST_COMMIT"),
        (
            {"versions": {"torch": "2.13.0"}, "device": "a processor"},
            "a processor, which is no GPU",
        ),
    ],
)
def test_what_would_say_something_false_is_refused(brought, change, said):
    before = results.every("decode")
    with pytest.raises(ValueError, match=said):
        brought_back.merge(brought({"decode": [STEP | change]}))
    assert results.every("decode") == before


def test_a_dry_run_is_no_result(brought, tmp_path):
    with pytest.raises(ValueError, match="is of a dry run"):
        brought_back.merge(brought(WHOLE, dry=True))
    with pytest.raises(ValueError, match=r"there is no gpu\.tgz in"):
        brought_back.merge(tmp_path)


def test_until_then_it_says_so():
    assert backends.backends().count("not yet run on a GPU") == 2
    for name in ("gpu-stages", "gpu-decode", "gpu-ops", "gpu-chain"):
        assert report.TABLES[name]() == gpu_runs.NOT_YET


def test_the_tables_name_the_device_and_leave_the_others_alone(brought):
    processors = {name: report.TABLES[name]() for name in ("decode", "ops")}
    brought_back.merge(brought(WHOLE))
    assert {name: report.TABLES[name]() for name in ("decode", "ops")} == processors
    for name in ("gpu-decode", "gpu-ops", "gpu-chain"):
        assert "NVIDIA H200" in report.TABLES[name]()
        assert "A/A" in report.TABLES[name]()
        assert report.TABLES[name]().endswith("CUDA 13.0; commit abc1234, 2026-12-02")
    assert "| NVIDIA H200, cuda |" in gpu_runs.decode()
    assert "| 1.003 [0.993, 1.013] | 0.970 [0.960, 0.980] | - |" in gpu_runs.decode()
    assert "| 93% | 1.020 [1.010, 1.030] |" in gpu_runs.ops()
    assert "| decode | out of time | 190 | 1 result line |" in gpu_runs.stages()


def test_the_readme_names_it_and_stays_narrow(brought):
    brought_back.merge(brought(WHOLE))
    _, _, _, _, triton, cuda = backends.backends().splitlines()
    assert triton.endswith("| interpreted; compiled | not yet run on a GPU |")
    assert "; 627 of 627 on a GPU | [NVIDIA H200](docs/benchmarks.md#on-a-gpu) |" in cuda
    assert max(map(len, backends.backends().splitlines())) <= 120


def test_one_command_does_all_of_it(brought, monkeypatch, tmp_path):
    pages = [tmp_path / "README.md", tmp_path / "benchmarks.md"]
    for page, name in zip(pages, ("backends", "gpu-decode"), strict=True):
        page.write_text(f"<!-- results:{name} -->\n<!-- /results:{name} -->\n")
    drawn = []
    monkeypatch.setattr(report, "DOCUMENTS", pages)
    monkeypatch.setattr(report.charts, "write", lambda: drawn.append(True))
    report.main(["--import", str(brought(WHOLE))])
    assert all("NVIDIA H200" in page.read_text() for page in pages)
    assert drawn
    assert (
        speed.speed().splitlines()[-1].startswith("AMD")
    )  # README's other table stays the processor's
