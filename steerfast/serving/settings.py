"""Settings of a steered engine, from ``STEERFAST_*`` variables or vLLM's ``additional_config``."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from steerfast.plans.fields import choice

Mode = Literal["fused", "exact"]
_ENGINE = ("mode", "slots", "rows", "programs")
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class Settings:
    """What an engine holds, and what its front end lets in. Every field is the variable STEERFAST_<FIELD>.

    The engine's, the same in every process (they travel in ``additional_config["steerfast"]``):

    mode: ``fused`` replaces the residual add and RMSNorm by one steered kernel · ``exact`` steers ahead of the
        engine's own norm, so that unsteered requests get the very bits of an engine without steering.
    slots, rows, programs: room for phases, directions and reading programs of the *distinct* plans of live
        requests. A request that finds no room waits for others to finish.

    The front end's:

    vectors: a folder of vector files (``<name>.safetensors``) and named plans (``<name>.json``).
    inline: whether a request may carry vectors itself. max_plan_bytes: of a request's plan, as text.
    max_terms: of a plan. max_vectors: registered vectors and plans together.
    dose_warn, dose_refuse: of what a plan adds at a site, in units of the model's median stream norm there.
    admin_token: opens the endpoints that list, add and remove vectors and plans; empty: they are off.

    Raises ValueError, with the variable's name, for a value that makes no sense.
    """

    mode: Mode = "fused"
    slots: int = 512
    rows: int = 4096
    programs: int = 1024
    vectors: str = ""
    inline: bool = False
    max_plan_bytes: int = 65536
    max_terms: int = 32
    max_vectors: int = 1024
    dose_warn: float = 1.0
    dose_refuse: float = math.inf
    admin_token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        for one in fields(self):
            value, kind = getattr(self, one.name), type(one.default)
            fits = isinstance(value, (int, float)) if kind is float else isinstance(value, kind)
            if not fits or (isinstance(value, bool) and kind is not bool):
                raise ValueError(
                    f"STEERFAST_{one.name.upper()} is {value!r}; wanted a {kind.__name__}"
                )
        choice("STEERFAST_MODE", self.mode, Mode)
        for name in ("slots", "rows", "max_plan_bytes", "max_terms", "max_vectors"):
            if getattr(self, name) < 1:
                raise ValueError(f"STEERFAST_{name.upper()} is {getattr(self, name)}; at least 1")
        if self.programs < 0:
            raise ValueError(f"STEERFAST_PROGRAMS is {self.programs}; 0 or more")
        for name in ("dose_warn", "dose_refuse"):
            if not getattr(self, name) > 0:
                raise ValueError(f"STEERFAST_{name.upper()} is {getattr(self, name)}; above 0")
        if self.vectors and not Path(self.vectors).is_dir():
            raise ValueError(f"STEERFAST_VECTORS is {self.vectors!r}, which is not a folder")

    @classmethod
    def read(
        cls, engine: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
    ) -> Settings:
        """From the environment; what ``additional_config["steerfast"]`` says takes precedence."""
        values: dict[str, Any] = {}
        for one in fields(cls):
            text = environ.get(f"STEERFAST_{one.name.upper()}")
            if text is not None:
                values[one.name] = _parse(one.name, type(one.default), text)
        known = {one.name for one in fields(cls)} - {"admin_token"}
        unknown = sorted(set(engine or {}) - known - {"version"})
        if unknown:
            raise ValueError(
                f"additional_config['steerfast'] has unknown keys {unknown}; known: {', '.join(sorted(known))}"
            )
        return cls(**values | {key: value for key, value in (engine or {}).items() if key in known})

    def engine(self) -> dict[str, Any]:
        """What every process must agree on, and what the traced code depends on."""
        return {name: getattr(self, name) for name in _ENGINE}


def _parse(name: str, kind: type, text: str) -> Any:
    try:
        if kind is bool:
            lowered = text.strip().lower()
            if lowered not in (*_TRUE, *_FALSE):
                raise ValueError(f"one of {', '.join((*_TRUE, *_FALSE))}")
            return lowered in _TRUE
        return kind(text)
    except ValueError as error:
        raise ValueError(
            f"STEERFAST_{name.upper()} is {text!r}; wanted a {kind.__name__}"
        ) from error
