"""Machine code as CUDA's disassembler prints it: the instructions of every kernel and the ways through them.

The disassembler comes inside Triton's package; no GPU is needed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

_LINE = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*);"
)
_USAGE = re.compile(r"Function (\w+):\n\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_LEAVE = ("BRA", "EXIT", "RET", "BRX", "JMP")


@dataclass(frozen=True)
class Instruction:
    address: int
    guard: str  # "" or as @!P0
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands)
        return int(found[1], 16) if self.name == "BRA" and found else None

    @property
    def always(self) -> bool:
        """Nothing decides whether it happens (a branch may have a second condition: ``BRA !P1, 0x80``)."""
        return not self.guard and "," not in self.operands


@dataclass(frozen=True)
class Kernel:
    name: str  # demangled, as rows_in_registers<float, float, 4, false>
    instructions: tuple[Instruction, ...]
    registers: int
    stack_bytes: int  # more than none: registers were spilled

    @cached_property
    def blocks(self) -> dict[int, tuple[Instruction, ...]]:
        """Runs of instructions that are entered at the head alone, by their first address."""
        heads = {self.instructions[0].address}
        for at, instruction in enumerate(self.instructions[:-1]):
            if instruction.name in _LEAVE:
                heads.add(self.instructions[at + 1].address)
                if instruction.target is not None:
                    heads.add(instruction.target)
        found: dict[int, list[Instruction]] = {}
        head = self.instructions[0].address
        for instruction in self.instructions:
            head = instruction.address if instruction.address in heads else head
            found.setdefault(head, []).append(instruction)
        return {head: tuple(block) for head, block in found.items()}

    def ways_out(self, head: int) -> Iterator[int]:
        """The blocks that may come after one."""
        last = self.blocks[head][-1]
        if last.target is not None:
            yield last.target
        follows = last.address + (self.instructions[1].address - self.instructions[0].address)
        if follows in self.blocks and not (last.name in _LEAVE and last.always):
            yield follows


def tool(name: str) -> str | None:
    """CUDA's program of that name: on PATH, or the copy in Triton's package."""
    if found := shutil.which(name):
        return found
    package = find_spec("triton")
    carried = package and Path(package.origin).parent / "backends/nvidia/bin" / name
    return str(carried) if carried and carried.exists() else None


def missing() -> str | None:
    """Why nothing can be disassembled here, or None."""
    if tool("cuobjdump") is None or tool("nvdisasm") is None:
        return "cuobjdump and nvdisasm are neither on PATH nor in the triton package"
    return None if shutil.which("c++filt") else "there is no c++filt"


def release() -> str:
    """That of nvcc, or "unknown"."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    try:
        said = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, check=True
        ).stdout
    except OSError:
        return "unknown"
    return re.search(r"release ([\d.]+)", said)[1]


def kernels_of(library: Path, arch: str, named: str) -> list[Kernel]:
    """Those kernels of a library (or an object, or a cubin) whose name has ``named`` in it."""

    def said(*flags: str) -> str:
        command = [tool("cuobjdump"), *flags, str(library)]
        # cuobjdump calls nvdisasm, which it looks for on PATH.
        path = {"PATH": f"{Path(tool('nvdisasm')).parent}:/usr/bin:/bin"}
        return subprocess.run(command, check=True, capture_output=True, text=True, env=path).stdout

    of_arch = () if library.suffix == ".cubin" else ("-arch", arch)
    usage = {name: numbers for name, *numbers in _USAGE.findall(said("-res-usage", *of_arch))}
    texts = re.split(r"\n\s*Function : (\w+)\n", said("-sass", *of_arch))
    found = {
        mangled: text
        for mangled, text in zip(texts[1::2], texts[2::2], strict=True)
        if named in mangled
    }
    names = subprocess.run(["c++filt", *found], check=True, capture_output=True, text=True).stdout
    kernels = []
    for (mangled, text), name in zip(found.items(), names.splitlines(), strict=True):
        lines = map(_LINE.match, text.splitlines())
        instructions = tuple(
            Instruction(
                int(line["address"], 16),
                (line["guard"] or "").strip(),
                line["opcode"],
                line["operands"].strip(),
            )
            for line in lines
            if line
        )
        registers, stack, _, local = map(int, usage[mangled])
        short = re.sub(r"\(anonymous namespace\)::|steerfast::|^void |\(.*", "", name)
        kernels.append(Kernel(short, instructions, registers, stack + local))
    return kernels
