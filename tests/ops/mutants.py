"""Bugs to plant in copies of the sources: exact replacements of text.

The C++ sources get all of theirs at once, each behind a test of one variable, so that one build serves
all: ``planted == 3 ? (wrong) : (right)``.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

CSRC = Path(__file__).parents[2] / "csrc"


class Mutant(NamedTuple):
    """In ``file``, behind the text ``before``, ``old`` becomes ``new``. before + old occurs once."""

    file: str
    before: str
    old: str
    new: str

    def assert_fits(self, text: str) -> None:
        place = self.before + self.old
        assert text.count(place) == 1, f"{self.file} has {text.count(place)} times: {place!r}"

    def planted_in(self, text: str, new: str | None = None) -> str:
        """The text with the bug; AssertionError where its place is gone or no longer the only one."""
        self.assert_fits(text)
        replacement = self.new if new is None else new
        return text.replace(self.before + self.old, self.before + replacement)


def planted_copy(folder: Path, mutants: Mapping[str, Mutant]) -> Path:
    """A copy of csrc with all these mutants, expressions one and all, numbered from 1 in their order.

    Mutant k is on where the variable ``planted`` is k; it begins as the environment's STEERFAST_PLANTED.
    Those that do not fit are left out: the test of each asserts that it does.
    """
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("__pycache__"))
    (csrc / "planted.h").write_text(PLANTED)
    for number, mutant in enumerate(mutants.values(), 1):
        path = csrc / mutant.file
        either = f"(planted == {number} ? ({mutant.new}) : ({mutant.old}))"
        with contextlib.suppress(AssertionError):
            path.write_text(mutant.planted_in(path.read_text(), either))
    for file in {mutant.file for mutant in mutants.values()}:
        path = csrc / file
        path.write_text(f'#include "{"../" * file.count("/")}planted.h"\n{path.read_text()}')
    return csrc


PLANTED = """#pragma once
#include <stdlib.h>
inline int planted = getenv("STEERFAST_PLANTED") ? atoi(getenv("STEERFAST_PLANTED")) : 0;
"""


REFERENCE = {
    "feature's sign": Mutant("ops/contribution.py", '(_OP["FEATURE"], read.level ', "-", "+"),
    "feature's threshold": Mutant("ops/contribution.py", "z > ", "read.threshold", "0"),
    "feature's bias": Mutant("ops/contribution.py", "z = p", " + read.offset", ""),
    "partner ignored": Mutant("ops/contribution.py", "line", " + read.cross * partner", ""),
    "partner is itself": Mutant(
        "ops/contribution.py", "", "_pick(dots, read.partner), norm", "dots[i], norm"
    ),
    "key is itself": Mutant("ops/contribution.py", "", "_pick(dots, read.key)", "dots[i]"),
    "one read too many": Mutant("ops/contribution.py", "record[:, 3] ", ">", ">="),
    "last read missed": Mutant("ops/contribution.py", "record[:, 3] > ", "i", "i + 1"),
    "gates swapped": Mutant(
        "ops/contribution.py", 'read.gate == _GATE["HARD"], ', "hard", "cosine"
    ),
    "cosine gate not relative": Mutant("ops/contribution.py", "k > read.bias", " * norm", ""),
    "sigmoid's bias": Mutant("ops/contribution.py", "torch.sigmoid(k", " + read.bias", ""),
    "sign of zero": Mutant("ops/contribution.py", "(p ", "> 0).double() -", ">= 0).double() -"),
    "floor is ceiling": Mutant("ops/contribution.py", "line.clamp(", "min", "max"),
    "relative to the dot": Mutant("ops/contribution.py", "read.slope * ", "norm)", "p)"),
    "turn without partner": Mutant(
        "ops/contribution.py", "torch.where(in_plane, ", "partner", "0.0"
    ),
    "slerp keeps h": Mutant("ops/contribution.py", "share", " - 1.0, 0.0", ", 0.0"),
    "slerp against its axis": Mutant("ops/contribution.py", "(sine >= ", "SMALLEST_SINE", "0"),
    "slerp's share without gate": Mutant(
        "ops/contribution.py", "of_h != 0, ", "gate * of_h", "of_h"
    ),
    "source is target": Mutant(
        "ops/contribution.py", "_dot(exact, bank, read.", "source", "target"
    ),
    "no gain": Mutant("ops/reference.py", "y = rows + ", "gain * contribution(", "contribution("),
    "length squared": Mutant("ops/reference.py", "there, ", "before /", "before * before /"),
    "finishes swapped": Mutant(
        "ops/reference.py", 'finish == FINISH_CODES["', "shrink", "preserve"
    ),
    "shrink grows": Mutant("ops/reference.py", "factor.clamp(", "max", "min"),
    "no finish": Mutant("ops/reference.py", "(y.double()", " * factor", ""),
    "slot off by one": Mutant(
        "ops/reference.py",
        "",
        "steering.row_slot.clamp(min=0).long()]",
        "(steering.row_slot - 1).clamp(min=0).long()]",
    ),
    "slot -1 is slot 0": Mutant("ops/reference.py", "", "(steering.row_slot >= 0) & ", ""),
    "gain 0 is active": Mutant("ops/reference.py", "", " & (steering.row_gain != 0)", ""),
    "reads without delta": Mutant("ops/reference.py", "", " | (record[:, 3] > 0)", ""),
    "fp32 order ignored": Mutant("ops/reference.py", "if norm_order == ", '"fp32"', '""'),
    "hf order ignored": Mutant("ops/reference.py", "if norm_order ", '== "fp32"', '!= ""'),
    "no eps": Mutant("ops/reference.py", "keepdim=True)", " + eps", ""),
    "norm of h": Mutant(
        "ops/reference.py",
        "return stream, rms_norm(",
        "stream",
        "parts.residual if parts.x is None else parts.residual + parts.x",
    ),
    "in place swapped": Mutant(
        "ops/reference.py",
        "",
        "stream, normed = residual_step(parts)",
        "normed, stream = residual_step(parts)",
    ),
}

# What the CPU and the CUDA kernels have in common.
COEFFICIENTS = {
    "feature's sign": Mutant(
        "coefficients.h",
        "return {",
        "read.level - (z > read.threshold ? z : 0.f)",
        "read.level + (z > read.threshold ? z : 0.f)",
    ),
    "feature's bias": Mutant("coefficients.h", "const float z = ", "p + read.offset", "p"),
    "partner ignored": Mutant(
        "coefficients.h", "return {", "line + read.cross * dots.partner", "line"
    ),
    "hard gate is cosine": Mutant(
        "coefficients.h", "return ", "key + read.bias > 0.f", "key > read.bias * norm"
    ),
    "cosine gate not relative": Mutant(
        "coefficients.h", "return ", "key > read.bias * norm && norm > 0.f", "key > read.bias"
    ),
    "sigmoid's sign": Mutant("coefficients.h", "expf(", "-(key + read.bias)", "key + read.bias"),
    "sign of zero": Mutant("coefficients.h", "return {", "p > 0.f", "p >= 0.f"),
    "ceiling is floor": Mutant("coefficients.h", "return {", "line > 0.f", "line < 0.f"),
    "turn without partner": Mutant("coefficients.h", "hypotf(p, ", "dots.partner", "0.f"),
    "relative to the dot": Mutant("coefficients.h", "read.slope * ", "dots.norm", "p"),
    "slerp keeps h": Mutant("coefficients.h", "", "left / y - 1.f", "left / y"),
    "slerp against its axis": Mutant(
        "coefficients.h", "if (", "!(sine >= kSmallestSine)", "sine != sine"
    ),
    "share without gate": Mutant(
        "coefficients.h", "0.f : ", "gate * ungated.share", "ungated.share"
    ),
}

CUDA = {
    "partner is itself": Mutant("reads.cuh", "", "max(read.partner, 0)", "lane"),
    "first read is key": Mutant("reads.cuh", "", "max(read.key, 0)", "0"),
    "dot of the next read": Mutant("reads.cuh", "sum_of_column(shared.dot, ", "lane", "lane ^ 1"),
    "factor missing": Mutant("reads.cuh", "added[i] += ", "term.f * direction[i]", "direction[i]"),
    "gain 0 is active": Mutant("route.cuh", "if (", "slot < 0 || gain == 0.f", "slot < 0"),
    "slot off by one": Mutant("route.cuh", "p.records + ", "slot", "slot - 1"),
    "reads without delta": Mutant(
        "route.cuh", "return ", "delta >= 0 || read_count > 0", "delta >= 0"
    ),
    "first program": Mutant("route.cuh", "p.reads[", "static_cast<uint32_t>(route.program)", "1u"),
    "delta of the row before": Mutant("route.cuh", "delta_, ", "lane", "max(lane - 1, 0)"),
    "gain of the row before": Mutant("route.cuh", "gain_, ", "lane", "max(lane - 1, 0)"),
    "vectors beyond the row count": Mutant(
        "steer_row.cuh", "squares[0] += ", "row.there(place)", "true"
    ),
    "no mean": Mutant("steer.cu", "p.inverse_width = ", "1.f / static_cast<float>(p.width)", "1.f"),
    "no gain": Mutant("steer_row.cuh", "y[i] = h[i] + ", "route.gain * added[i]", "added[i]"),
    "finishes swapped": Mutant(
        "steer_row.cuh", "finish == ", "Finish::kShrink", "Finish::kPreserve"
    ),
    "factor upside down": Mutant(
        "steer_row.cuh", "", "sqrtf(before) / norm", "norm / sqrtf(before)"
    ),
    "no finish": Mutant("steer_row.cuh", "scale(y, ", "factor", "1.f"),
    "fp32 order ignored": Mutant("steer_row.cuh", "if (", "p.fp32_norm", "false"),
    "no eps": Mutant("steer_row.cuh", "p.inverse_width + ", "p.eps", "0.f"),
}

CPU = {
    "gain 0 is active": Mutant(
        "cpu/steer_rows.cpp", "p.row_slot[n] < 0 || ", "p.row_gain[n] == 0.f", "false"
    ),
    "slot off by one": Mutant(
        "cpu/steer_rows.cpp", "p.records + ", "p.row_slot[n]", "p.row_slot[n] - 1"
    ),
    "reads without delta": Mutant(
        "cpu/steer_rows.cpp",
        "return ",
        "record->delta >= 0 || record->read_count > 0",
        "record->delta >= 0",
    ),
    "every gain is 1": Mutant("cpu/steer_rows.cpp", "unit &= ", "of_row == 1.f", "true"),
    "fp32 order ignored": Mutant("cpu/steer_rows.cpp", "if (", "p.fp32_norm", "false"),
    "no eps": Mutant("cpu/steer_rows.cpp", "static_cast<float>(p.width) + ", "p.eps", "0.f"),
    "target without source": Mutant(
        "cpu/reading.h", "if (", "read.target >= 0", "read.target >= 0 && read.source >= 0"
    ),
    "first program": Mutant(
        "cpu/reading.h", "p.reads + ", "int64_t{record.program} * kMaxReads", "int64_t{kMaxReads}"
    ),
    "delta off by one": Mutant(
        "cpu/reading.h",
        "nullptr : ",
        "p.bank + record.delta * p.width",
        "p.bank + (record.delta - 1) * p.width",
    ),
    "dots in order of sources": Mutant("cpu/reading.h", "dots[row].p[", "sources[i].place", "i"),
    "factors in order of reads": Mutant(
        "cpu/reading.h", "steered.f[i][row] = ", "f[program.target[i].place]", "f[i]"
    ),
    "no share of h": Mutant(
        "cpu/reading.h", "steered.shares[row] = ", "steered.share[row] != 0.f", "false"
    ),
    "no gain": Mutant("cpu/reading.h", "return h + Lanes::fill(", "gain[row]", "1.f"),
    "finishes swapped": Mutant("lengths.h", "finish == ", "Finish::kShrink", "Finish::kPreserve"),
    "factor upside down": Mutant(
        "lengths.h", "float factor = ", "before.root / after.root", "after.root / before.root"
    ),
    "short rows not raised": Mutant("lengths.h", "return ", "kRaise", "1.f"),
    "long rows not lowered": Mutant("lengths.h", "1.f : ", "kLower", "1.f"),
    "factor's root once": Mutant("cpu/reading.h", "Lanes::fill(", "twice ? factor : 1.f", "1.f"),
    "last element lost": Mutant(
        "cpu/tile.h",
        "std::memcpy(pad, data + start, ",
        "count * sizeof(T)",
        "(count - 1) * sizeof(T)",
    ),
    "partner is key": Mutant(
        "cpu/coefficients.cpp",
        "given.partner = ",
        "dot_of(reads[i].partner)",
        "dot_of(reads[i].key)",
    ),
    "place 0 is none": Mutant("cpu/coefficients.cpp", "return ", "place < 0", "place <= 0"),
}
# Where two rows of one record are walked together.
CPU_PAIRS = {
    "rows of two records": Mutant("cpu/steer_rows.cpp", "", "route(p, n + 1) == record", "true"),
    "the other row's gain": Mutant(
        "cpu/steer_rows.cpp", "gain[row] = record ? ", "p.row_gain[n + row]", "p.row_gain[n]"
    ),
}

TRITON = {
    "dot of the read before": Mutant("reads.py", "dots = tl.where(places == ", "i", "i + 1"),
    "target is source": Mutant("reads.py", "_row_of(program_ptr, i, count, ", "TARGET", "SOURCE"),
    "key is partner": Mutant("reads.py", "k = _named(dots, program_ptr, ", "KEY", "PARTNER"),
    "partner ignored": Mutant("reads.py", "op == AFFINE, line", " + cross * partner", ""),
    "gates swapped": Mutant("reads.py", "gate = tl.where(kind == ", "HARD", "COSINE"),
    "cosine gate not relative": Mutant("reads.py", "k > bias", " * norm", ""),
    "floor is ceiling": Mutant(
        "reads.py", "tl.where(line ", "< 0.0, 0.0, line", "> 0.0, 0.0, line"
    ),
    "sign of zero": Mutant("reads.py", "sign = (p ", "> 0.0", ">= 0.0"),
    "feature's sign": Mutant("reads.py", "op == FEATURE, level ", "-", "+"),
    "slerp against its axis": Mutant("reads.py", "there = sine >= ", "SMALLEST_SINE", "0.0"),
    "share without gate": Mutant("reads.py", "(share != 0.0), ", "gate * share", "share"),
    "tail not masked": Mutant("reads.py", "mask=", "(columns < D) & (row >= 0)", "row >= 0"),
    "no gain": Mutant("steer_add_rms_norm.py", "y = wide + ", "gain * added", "added"),
    "gain 0 is active": Mutant("steer_add_rms_norm.py", "", " & (gain != 0.0)", ""),
    "slot off by one": Mutant(
        "steer_add_rms_norm.py", "records_ptr + ", "slot.to(tl.int64)", "(slot - 1).to(tl.int64)"
    ),
    "finishes swapped": Mutant("lengths.py", "(finish ", "== SHRINK", "!= SHRINK"),
    "no finish": Mutant("lengths.py", "    y = y", " * factor\n    if far", "\n    if far"),
    "short rows not raised": Mutant("lengths.py", "LEAST, ", "RAISE", "1.0"),
    "long rows not lowered": Mutant("lengths.py", "RAISE, ", "LOWER", "1.0"),
    "factor's root once": Mutant("lengths.py", "    if far:\n        y = y", " * factor", ""),
    "fp32 order ignored": Mutant("steer_add_rms_norm.py", "if ", "not FP32_NORM", "True"),
    "no eps": Mutant("steer_add_rms_norm.py", "mean", " + tl.cast(eps, tl.float32)", ""),
}
