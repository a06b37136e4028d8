"""SteeringVector: a named direction for one or more layers, and where it came from.

Files are read and written by ``steerfast.io``; extraction lives in ``steerfast.extraction.extract``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from steerfast.plans.fields import number, whole, wholes

LAYER_CONVENTION = (
    "resid_post, layers from 0: directions[l] was read at the output of decoder layer l"
)


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction of the residual stream at one or more layers of one model.

    name: what the direction means to its user; names a file, a term, a row of a report.
    directions: {layer: [D] tensor}; or an [L, D] tensor or a list of [D] tensors, of layers 0 to L-1; or
        {layer: [T, D]} of a positional vector, which has a direction for each of the first T positions (for
        ``First``). Copied, as float32 on the CPU, not normalised; not to be written to. Layers count from 0,
        and layer l is the output of decoder layer l (the paper's convention; libraries that count
        block inputs call the same place l + 1).
    stream_norms: {layer: median L2 norm of the residual stream there}, position 0 and padding left
        out; needed by scale ``"stream"`` only.
    provenance: JSON-like facts: ``model``, ``method``, ``counts``, ...; shown, stored, not computed with.

    Raises ValueError for an empty, non-finite or ragged set of directions.
    """

    name: str
    directions: Mapping[int, Tensor]
    stream_norms: Mapping[int, float] = field(default_factory=dict)
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise ValueError(f"a vector needs a name, got {self.name!r}")
        if self.stream_norms is None:
            object.__setattr__(self, "stream_norms", {})
        given: Any = self.directions
        if not isinstance(
            given, Mapping
        ):  # [L, D], or one [D] (or [T, D]) for each layer from 0 on
            given = dict(enumerate(given))
        if not given:
            raise ValueError(
                f"vector {self.name!r} has no directions; give at least one {{layer: [D] tensor}}"
            )
        clean: dict[int, Tensor] = {}
        for layer, direction in sorted(self._by_layer(given).items()):
            if isinstance(direction, Tensor) and direction.requires_grad:
                raise ValueError(
                    f"vector {self.name!r} requires grad at layer {layer}, but a vector is a copy and would not learn; "
                    "give direction.detach()"
                )
            if torch.as_tensor(direction).is_complex():
                raise ValueError(
                    f"vector {self.name!r} is complex at layer {layer}; streams are real"
                )
            kept = torch.as_tensor(direction).detach().to("cpu", torch.float32).clone()
            if kept.ndim not in (1, 2) or kept.numel() == 0:
                raise ValueError(
                    f"vector {self.name!r} has shape {list(kept.shape)} at layer {layer}; each direction is [D], or "
                    "[T, D] by position"
                )
            if not torch.isfinite(kept).all():
                raise ValueError(
                    f"vector {self.name!r} holds NaN or infinity at layer {layer}; extract it again"
                )
            clean[layer] = kept
        sizes = {direction.shape[-1] for direction in clean.values()}
        if len(sizes) > 1:
            raise ValueError(
                f"vector {self.name!r} mixes hidden sizes {sorted(sizes)}; one model has one"
            )
        if len({direction.shape for direction in clean.values()}) > 1:
            raise ValueError(f"vector {self.name!r} has other positions at other layers")
        norms = {
            whole("a layer of stream norms", layer): number("a stream norm", norm)
            for layer, norm in self.stream_norms.items()
        }
        for layer, norm in norms.items():
            if not 0.0 < norm < float("inf"):
                raise ValueError(
                    f"vector {self.name!r} has stream norm {norm} at layer {layer}; it must be positive"
                )
        object.__setattr__(self, "directions", MappingProxyType(clean))
        object.__setattr__(self, "stream_norms", MappingProxyType(norms))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def _by_layer(self, given: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """With layers as plain integers, none twice."""
        found: dict[int, Tensor] = {}
        for key, direction in given.items():
            try:
                layer = whole("a layer", key)
            except TypeError:
                layer = -1
            if layer < 0:
                raise ValueError(
                    f"vector {self.name!r} names layer {key!r}; layers are integers from 0"
                )
            found[layer] = direction
        return found

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that have a direction, ascending."""
        return tuple(self.directions)

    @property
    def suggested_layer(self) -> int:
        """Where to start: of its layers the nearest to a third of the model's depth, 10 of SmolLM2's 30 and 11 of
        Llama-2-7B's 32 (the paper steers 10 to 15). The depth is that of its stream norms, which extraction takes
        everywhere, else of its own layers."""
        third = round((1 + max((*self.layers, *self.stream_norms))) / 3)
        return min(self.layers, key=lambda layer: (abs(layer - third), layer))

    @property
    def hidden_size(self) -> int:
        """D, the width of the residual stream."""
        return next(iter(self.directions.values())).shape[-1]

    @property
    def positions(self) -> int | None:
        """T of a positional vector, None where one direction serves every position."""
        shape = next(iter(self.directions.values())).shape
        return shape[0] if len(shape) == 2 else None

    def position(self, t: int) -> SteeringVector:
        """Row t of a positional vector, as an ordinary one."""
        rows = {layer: direction[t] for layer, direction in self.directions.items()}
        return replace(self, name=f"{self.name}[{t}]", directions=rows)

    @property
    def digest(self) -> str:
        """SHA-256 over layers, values and stream norms; neither name nor provenance enters."""
        content = hashlib.sha256()
        for layer, direction in self.directions.items():
            shape = "" if direction.ndim == 1 else f"{len(direction)}x"
            content.update(f"{layer}:{shape}{self.stream_norms.get(layer, 0.0).hex()}:".encode())
            content.update(direction.numpy().tobytes())
        return content.hexdigest()

    def at(self, layer: int) -> Tensor:
        """A copy of the [D] float32 direction ([T, D] by position) of one layer; ValueError names the layers there are."""
        return self.direction(layer).clone()

    def direction(self, layer: int) -> Tensor:
        """The direction of one layer itself, not to be written to. As ``at``."""
        if layer not in self.directions:
            hint = (
                "; layers count from 0, and a vector does not know where its model ends: "
                f"{layer} from the end is num_hidden_layers - {-layer}"
            )
            raise ValueError(
                f"vector {self.name!r} has no layer {layer}; it has {_ranges(self.layers)}"
                f"{hint if layer < 0 else ''}"
            )
        return self.directions[layer]

    def select(self, layers: Iterable[int]) -> SteeringVector:
        """The same vector with only these layers."""
        wanted = {layer: self.at(layer) for layer in wholes("a layer", layers)}
        return replace(self, directions=wanted)

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and pickles go through plain dicts: a read-only mapping cannot be pickled."""
        parts = (dict(self.directions), dict(self.stream_norms), dict(self.provenance))
        return (SteeringVector, (self.name, *parts))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SteeringVector):
            return NotImplemented
        return self.name == other.name and self.digest == other.digest

    def __hash__(self) -> int:
        return hash((self.name, self.layers, self.hidden_size))

    def __repr__(self) -> str:
        model = self.provenance.get("model", "unknown model")
        return f"SteeringVector({self.name!r}, layers {_ranges(self.layers)}, D={self.hidden_size}, {model})"


def _ranges(layers: Iterable[int]) -> str:
    """(0, 1, 2, 5) -> '0..2, 5'."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}..{last}" for first, last in runs)
