"""Linear probes of scikit-learn, from the estimator itself: its file is a pickle, which runs what it likes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steerfast.io.formats.found import Found, layer_number
from steerfast.io.formats.layers import Convention

CONVENTION = Convention("outputs", "the layer that the caller named, as its output, layers from 0")


def is_estimator(source: object) -> bool:
    """Whether it is a fitted linear estimator, or a pipeline that ends in one."""
    return hasattr(_last(source), "coef_")


def directions(given: Mapping[int, Any]) -> Found:
    """{layer: fitted estimator}: a classifier of two classes (LogisticRegression, LinearDiscriminantAnalysis, LinearSVC,
    RidgeClassifier, ...) or a regression of one target, alone or behind a StandardScaler in a Pipeline.

    The direction is the gradient of its decision w.r.t. the stream: ``coef_``, divided by a scaler's ``scale_``. It points
    to ``classes_[1]``. The intercept, for a gate, lies in provenance. ValueError for anything else.
    """
    numbered: dict[int, Tensor] = {}
    intercepts, kinds, classes = {}, set(), None
    for layer, estimator in given.items():
        number = layer_number(layer, "a probe")
        weight, intercept = _linear(estimator)
        numbered[number] = torch.from_numpy(weight)
        intercepts[str(number)] = intercept
        kinds.add(type(_last(estimator)).__name__)
        labels = getattr(_last(estimator), "classes_", None)
        classes = None if labels is None else [str(label) for label in labels]
    facts: dict[str, Any] = {"method": ", ".join(sorted(kinds)), "intercepts": intercepts}
    if classes is not None:
        facts["classes"] = classes
    return Found("probe (scikit-learn)", CONVENTION, numbered, provenance=facts)


def _last(source: object) -> object:
    steps = getattr(source, "steps", None)
    return steps[-1][1] if isinstance(steps, list) and steps else source


def _linear(estimator: Any) -> tuple[np.ndarray[Any, Any], float]:
    last = _last(estimator)
    name = type(last).__name__
    weight = np.asarray(getattr(last, "coef_", None), dtype=np.float64)
    if weight.ndim == 2 and len(weight) == 1:
        weight = weight[0]
    if weight.ndim != 1:
        raise ValueError(
            f"{name} has coefficients of shape {list(weight.shape)}; a direction comes from two classes: fit one against "
            "the rest"
        )
    intercept = float(np.ravel(getattr(last, "intercept_", 0.0))[0])
    for scaler in reversed(_before(estimator)):
        if type(scaler).__name__ != "StandardScaler":
            raise ValueError(
                f"{type(scaler).__name__} stands before {name}; a direction of the stream can be read behind StandardScaler only"
            )
        if scaler.scale_ is not None:
            weight = weight / np.asarray(scaler.scale_)
        if scaler.mean_ is not None and scaler.with_mean:
            intercept -= float(weight @ np.asarray(scaler.mean_))
    return weight, intercept


def _before(estimator: Any) -> list[Any]:
    steps = getattr(estimator, "steps", None)
    found = [] if steps is None else [step for _, step in steps[:-1]]
    return [step for step in found if step is not None and step != "passthrough"]
