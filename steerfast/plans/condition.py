"""Condition: whether a request is steered at all, decided once from its prompt and then kept.

A gate (``steerfast.plans.term.Gate``) decides anew for every token; a condition decides for the request, while
its prompt is read, on the device. It is therefore blind to what is generated, and the same whether
the prompt comes whole or in chunks, from a cache or computed again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import torch

from steerfast.plans.fields import choice, number, whole
from steerfast.plans.sites import Site, site_index
from steerfast.plans.vector import SteeringVector

Kind = Literal["cosine", "projection", "probe"]
Over = Literal["last", "mean"]
Require = Literal["all", "any"]
MAX_TESTS = 4  # of one condition; what the device holds per request


@dataclass(frozen=True)
class Test:
    """One measurement of a prompt against a threshold.

        cosine      <h, key> / (|h| |key|)      0 where h = 0
        projection  <h, key> / |key|
        probe       <h, key> + bias             a linear classifier; its threshold is 0

    h: the request's own stream at ``site`` of ``layer``. over: the value at the last prompt token, or the
    ``mean`` of the values at all prompt tokens. Met where value > threshold, or < with ``below``.
    key: a SteeringVector with a direction at ``layer``, not zero.
    Raises TypeError or ValueError for an unknown choice, a number that is not finite or of another kind.
    """

    kind: Kind
    key: SteeringVector
    layer: int
    threshold: float = 0.0
    bias: float = 0.0
    site: Site = "resid_post"
    over: Over = "last"
    below: bool = False

    __test__ = False  # pytest collects classes of this name

    def __post_init__(self) -> None:
        choice("kind of test", self.kind, Kind)
        choice("site", self.site, Site)
        choice("over", self.over, Over)
        if not isinstance(self.key, SteeringVector):
            raise TypeError(f"a test's key is a SteeringVector, got {type(self.key).__name__}")
        object.__setattr__(self, "layer", whole("the layer of a test", self.layer))
        if self.layer < 0:
            raise ValueError(f"a test measures at one layer, counted from 0, got {self.layer!r}")
        if not isinstance(self.below, bool):
            raise TypeError(f"below is True or False, got {self.below!r}")
        for name in ("threshold", "bias"):
            object.__setattr__(self, name, number(f"a test's {name}", getattr(self, name)))
        unused = "threshold" if self.kind == "probe" else "bias"
        if getattr(self, unused) != 0.0:
            raise ValueError(f"a {self.kind} test takes no {unused}")
        if self.key.positions is not None:
            raise ValueError(
                f"a test's key {self.key.name!r} is positional; it needs one direction"
            )
        if not self.key.direction(self.layer).any():
            raise ValueError(f"the key {self.key.name!r} is zero at layer {self.layer}")

    @property
    def measured_at(self) -> int:
        """The site's row in the table."""
        return site_index(self.site, self.layer)

    @property
    def limit(self) -> float:
        """The threshold that <h, key/|key|>, or the cosine, is compared with."""
        if self.kind != "probe":
            return self.threshold
        key = self.key.direction(self.layer).double()
        return -self.bias / float(torch.linalg.vector_norm(key))


@dataclass(frozen=True)
class Condition:
    """``all`` or ``any`` of one to four tests.

    A plan with a condition steers nothing before the last prompt token. If the condition holds, it
    steers that token in layers above the last one measured, and every later token everywhere; its terms' selectors and
    its schedule apply within that. If not, the request is not steered.
    """

    tests: tuple[Test, ...]
    require: Require = "all"

    def __post_init__(self) -> None:
        tests = (self.tests,) if isinstance(self.tests, Test) else tuple(self.tests)
        choice("require", self.require, Require)
        if not all(isinstance(test, Test) for test in tests):
            raise TypeError("a condition is made of Tests")
        if not 1 <= len(tests) <= MAX_TESTS:
            raise ValueError(f"a condition has 1 to {MAX_TESTS} tests, got {len(tests)}")
        if len({test.key.hidden_size for test in tests}) > 1:
            raise ValueError("a condition mixes hidden sizes; one model has one")
        object.__setattr__(self, "tests", tests)

    @property
    def decided_at(self) -> int:
        """The last site measured, by its row in the table."""
        return max(test.measured_at for test in self.tests)

    @property
    def steers_above(self) -> int:
        """Sites of greater index are in layers above the last one measured."""
        site = self.decided_at
        return site + site % 2  # resid_mid of a layer to its resid_post, which ends the layer

    @property
    def averages(self) -> bool:
        """Whether it needs every prompt token: then no prefix of the prompt may come from elsewhere."""
        return any(test.over == "mean" for test in self.tests)

    @property
    def digest(self) -> str:
        """SHA-256 of what it decides; names and the order of tests do not enter."""
        parts = []
        for test in self.tests:
            head = f"{test.kind}|{test.measured_at}|{test.over}|{test.below}|"
            numbers = f"{test.threshold.hex()}|{test.bias.hex()}|"
            key = test.key.direction(test.layer).numpy().tobytes()
            parts.append(hashlib.sha256((head + numbers).encode() + key).hexdigest())
        return hashlib.sha256("|".join([self.require, *sorted(parts)]).encode()).hexdigest()
