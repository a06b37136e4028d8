"""The tensors of a ``.pt`` file as an SAE is read from: mapped, so that only what is taken is read."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from steerfast.io.formats.found import real


class TorchTensors:
    """A dict of tensors, perhaps under ``state_dict``; other entries are left alone."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    @classmethod
    def of(cls, tree: Any) -> TorchTensors:
        """Those in what ``torch_file.read_tree`` gave."""
        if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
            tree = tree["state_dict"]
        pairs = tree.items() if isinstance(tree, dict) else ()
        return cls(
            {key: one for key, one in pairs if isinstance(key, str) and isinstance(one, Tensor)}
        )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def take(self, name: str, axis: int, index: int) -> Tensor:
        tensor = self.tensors[name]
        if not 0 <= index < tensor.shape[axis]:
            raise ValueError(f"{name} has no {index}")
        return real(tensor.select(axis, index).reshape(-1), name)

    def whole(self, name: str) -> Tensor:
        return real(self.tensors[name], name)
