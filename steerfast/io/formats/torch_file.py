"""``.pt`` files: tensors in lists and dicts, and nothing that runs.

``torch.load(weights_only=True)`` alone reads them. Ahead of it the file is looked at as what it is, a zip archive with a
pickle in it, since even a restricted pickle may ask for a terabyte.
"""

from __future__ import annotations

import pickle
import pickletools
import zipfile
import zlib
from pathlib import Path
from typing import Any

LARGEST_PICKLE = 2**24  # bytes; it holds names and shapes, no values
# What tensors, and dicts of them, are made of. torch itself also lets through what allocates on request (bytearray).
_NEEDED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    *(
        ("torch", f"{kind}Storage")
        for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Bool")
    ),
}
_HINTS = {
    "torch._utils": "a tensor of a special kind",
    "numpy": "an array of numpy: torch.save(torch.from_numpy(array), path)",
    "numpy.core.multiarray": "an array of numpy: torch.save(torch.from_numpy(array), path)",
    "numpy._core.multiarray": "an array of numpy: torch.save(torch.from_numpy(array), path)",
    "steering_vectors.steering_vector": "a SteeringVector of steering-vectors: give the object itself to steerfast.load, "
    "or torch.save its layer_activations",
}


def read_tree(path: Path) -> Any:
    """What a ``.pt`` file holds: tensors, numbers, text, in lists and dicts. ValueError, with the reason, for a file that
    needs anything else to be read, that is compressed, or of torch before 1.6."""
    import torch

    sizes = _check(path)
    try:
        # Mapped, so that a storage that claims more than its record ends with the file and not in memory beyond it.
        tree = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever its reader stumbles over in a file that is broken
        raise ValueError(f"torch cannot read it: {' '.join(str(error).split())[:300]}") from error
    for tensor in tensors_in(tree):
        if tensor.layout is torch.strided and tensor.untyped_storage().nbytes() not in sizes:
            raise ValueError("it lies about its sizes: a tensor's storage is none of its records")
    return tree


def tensors_in(tree: Any) -> list[Any]:
    """All tensors in lists and dicts, each once."""
    import torch

    found, pending, seen = [], [tree], set()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif isinstance(one, (list, tuple)):
            pending.extend(one)
        elif isinstance(one, dict):
            pending.extend(one.values())
    return found


def _check(path: Path) -> set[int]:
    """The sizes of its records; ValueError for what torch.save does not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type]
            if packed:
                raise ValueError(
                    f"{packed[0][:80]!r} in it is compressed; torch.save writes no such file"
                )
            pickles = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
                raise ValueError("it is a zip archive, but not as torch.save writes one")
            program = archive.read(pickles[0])
            sizes = {entry.file_size for entry in archive.infolist()}
    except (
        zipfile.BadZipFile,
        OSError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        zlib.error,
    ) as error:
        raise ValueError(
            f"it is not a file of torch.save (or of torch before 1.6; then load it there and save it anew): {error}"
        ) from error
    _check_program(program)
    return sizes


def _check_program(program: bytes) -> None:
    """ValueError for a pickle that names anything but tensors and dicts."""
    try:
        for step, argument, _ in pickletools.genops(program):
            if step.name in (
                "STACK_GLOBAL",
                "INST",
                "OBJ",
                "NEWOBJ",
                "NEWOBJ_EX",
                "EXT1",
                "EXT2",
                "EXT4",
            ):
                raise ValueError(
                    f"it needs code to be read ({step.name}); save tensors, or a dict of them"
                )
            if step.name == "GLOBAL":
                module, _, name = str(argument).partition(" ")
                if (module, name) not in _NEEDED:
                    hint = _HINTS.get(module, "save tensors, or a dict of them")
                    raise ValueError(
                        f"it needs {module}.{name}, and reading that may run code; {hint}"
                    )
    except (pickle.UnpicklingError, IndexError, UnicodeDecodeError) as error:
        raise ValueError(f"its pickle is broken: {error}") from error
