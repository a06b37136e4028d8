"""How the kernel is cut for rows of D elements: a committed table, and a rule where it says nothing."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import triton

TABLE = Path(__file__).parent / "tables" / "launch.json"
FORMS = ("additive", "with_reads")  # of the kernel: without and with HAS_READS


@dataclass(frozen=True)
class Config:
    """num_warps decides the order of summation, and a row's result must not depend on its batch: so it
    depends on nothing but D, its dtype and the GPU. maxnreg, the registers that a thread may have
    (None: as many as the compiler likes), changes no result.
    """

    BLOCK_D: int
    num_warps: int
    maxnreg: int | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Compile options. Without fusion gain * delta is rounded before the sum, as in the reference;
        the default differs between Triton versions. The interpreter drops them all.
        """
        options = {"num_warps": self.num_warps, "enable_fp_fusion": False}
        return options if self.maxnreg is None else options | {"maxnreg": self.maxnreg}


@cache
def config_for(D: int, element_size: int, with_reads: bool, arch: str) -> Config:
    """For rows of D elements of so many bytes on a GPU (``sm_90``): the table's entry of the nearest D
    with the same BLOCK_D, which decides the registers; without one, the rule."""
    block = triton.next_power_of_2(D)
    sizes = _table().get((arch, 8 * element_size), {})
    alike = [size for size in sizes if triton.next_power_of_2(size) == block]
    if not alike:
        return Config(block, rule(block))
    entry = sizes[min(alike, key=lambda size: abs(size - D))]
    return Config(block, entry["num_warps"], entry["maxnreg"][FORMS[with_reads]])


def rule(BLOCK_D: int) -> int:
    """16 elements a thread from 512 to 8192: 16-byte accesses, and few enough registers. Not more than
    16 warps, since 32 would leave a thread no more than 64 registers."""
    return min(max(BLOCK_D // 512, 1), 16)


@cache
def _table() -> dict[tuple[str, int], dict[int, dict[str, Any]]]:
    """{(arch, bits of an element): {D: entry}}"""
    architectures = json.loads(TABLE.read_text(encoding="utf-8"))["architectures"]
    return {
        (arch, int(bits)): {int(D): entry for D, entry in sizes.items()}
        for arch, parts in architectures.items()
        for bits, sizes in parts.items()
        if bits.isdigit()
    }
