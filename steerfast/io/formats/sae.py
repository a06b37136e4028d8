"""One feature of a sparse autoencoder: its decoder direction, or a ``feature_clamp`` with its encoder beside it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steerfast.io.formats.found import layer_number
from steerfast.io.formats.sae_layouts import Layout, input_scale, layer_of, layout_of, model_of
from steerfast.io.formats.tensor_file import TensorFile
from steerfast.plans.plan import Plan
from steerfast.plans.term import Term
from steerfast.plans.vector import SteeringVector


class Sae:
    """An SAE in a file. path: as it was given, for its layer and its name. sidecar: what the JSON beside it says."""

    def __init__(
        self, file: TensorFile, path: str, suffix: str, stem: str, sidecar: Mapping[str, Any]
    ) -> None:
        self.file, self.path, self.sidecar = file, path, sidecar
        self.layout: Layout = layout_of(file.shapes, suffix, stem, sidecar)
        shapes = file.shapes
        lengths = [shapes[name] for name in (self.layout.encoder_bias, self.layout.decoder_bias)]
        if any(len(shape) != 1 or not shape[0] for shape in lengths):
            raise ValueError(f"the biases of an SAE are vectors, these are {lengths}")
        self.features, self.size = lengths[0][0], lengths[1][0]
        if "affine_skip_connection" in shapes:
            raise ValueError(
                "it is a transcoder (it has an affine skip connection); taken are SAEs of the residual stream"
            )
        self._encoder_axis = self._axis(self.layout.encoder)
        self._decoder_axis = self._axis(self.layout.decoder)

    def _axis(self, name: str) -> int:
        """Which axis of a matrix counts features."""
        shape = self.file.shapes[name]
        wanted = {(self.features, self.size): 0, (self.size, self.features): 1}
        if shape not in wanted or self.features == self.size:
            raise ValueError(
                f"{name} has the shape {list(shape)}, which does not show {self.features} features of {self.size} values"
            )
        return wanted[shape]

    def direction(self, feature: int, layer: int | None, name: str | None) -> SteeringVector:
        """The decoder direction of a feature, at the layer whose output the SAE reads and writes."""
        self._check(feature)
        scale = self._scale(needed=False)
        return self._vector(
            self._row(self.layout.decoder, self._decoder_axis, feature) / scale,
            feature,
            layer,
            name,
            "decoder",
        )

    def clamp(self, feature: int, target: float, layer: int | None, name: str | None) -> Plan:
        """A plan that holds the feature at a target: <h, read> + bias against the threshold, as the SAE's encoder has it."""
        self._check(feature)
        layout = self.layout
        if layout.activation == "unknown":
            raise ValueError(
                f"the encoder of an SAE of family {layout.family!r} is no row, bias and threshold; take the direction"
            )
        if layout.activation == "topk":
            warnings.warn(
                f"a feature of {self.path} is active only among the k greatest of its token, which a clamp of one feature "
                "cannot know: it takes the feature for active wherever it is positive",
                stacklevel=2,
            )
        scale = self._scale(needed=True)
        encoder = self._row(layout.encoder, self._encoder_axis, feature) * scale
        bias = float(self.file.take(layout.encoder_bias, 0, feature))
        if layout.centred:
            bias -= float(encoder.double() @ self.file.whole(layout.decoder_bias).double())
        read = self._vector(encoder, feature, layer, None, "encoder")
        decoder = self._row(layout.decoder, self._decoder_axis, feature) / scale
        term = Term(
            self._vector(decoder, feature, layer, name, "decoder"),
            operator="feature_clamp",
            read=read,
            bias=bias,
            threshold=self._threshold(feature, scale),
            target=target,
        )
        return Plan((term,))

    def _threshold(self, feature: int, scale: float) -> float:
        layout = self.layout
        if layout.threshold is not None:
            shape = self.file.shapes[layout.threshold]
            if shape == (self.features,):
                value = self.file.take(layout.threshold, 0, feature)
            elif shape in ((), (1,)):
                value = self.file.whole(layout.threshold)
            else:
                raise ValueError(f"its threshold has the shape {list(shape)}")
            return float(value.double().exp()) if layout.log_threshold else float(value)
        if layout.activation != "jumprelu":
            return 0.0
        given = self.sidecar.get(
            "jump_relu_threshold"
        )  # Llama Scope: one for all, in units of the scaled stream
        if isinstance(given, bool) or not isinstance(given, (int, float)):
            raise ValueError(
                "its threshold is neither in it nor in the hyperparams.json beside it; take the direction"
            )
        return float(given) * scale

    def _scale(self, needed: bool) -> float:
        scale = input_scale(self.layout, self.sidecar, self.size)
        if scale is None and needed:
            raise ValueError(
                "Llama Scope scales streams by their mean norm, and the hyperparams.json that has it is not beside the file; "
                "put it there, or take the direction"
            )
        return 1.0 if scale is None else scale

    def _check(self, feature: int) -> None:
        if not 0 <= feature < self.features:
            raise ValueError(f"it has no feature {feature}; it has 0 to {self.features - 1}")

    def _row(self, name: str, axis: int, feature: int) -> Tensor:
        row = self.file.take(name, axis, feature)
        if not torch.isfinite(row).all():
            raise ValueError(f"feature {feature} of {name} holds NaN or infinity")
        return row

    def _vector(
        self, row: Tensor, feature: int, layer: int | None, name: str | None, part: str
    ) -> SteeringVector:
        of = layer_of(self.path, self.sidecar) if layer is None else layer
        facts = {
            "format": f"SAE feature ({self.layout.family})",
            "layer_convention": f"the output of layer {layer_number(of, 'it')}, layers from 0, which the SAE reads and writes",
            "feature": feature,
            "part": part,
        }
        model = model_of(self.sidecar)
        if model is not None:
            facts["model"] = model
        return SteeringVector(name or f"feature {feature}", {of: row}, provenance=facts)
