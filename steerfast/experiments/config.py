"""Studies as configuration: presets that ship, or a TOML file of the same form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from steerfast.experiments.choice import Criterion
from steerfast.experiments.ranges import (
    DOSE,
    LAYER,
    MOST_POINTS,
    QUESTIONS,
    SEED,
    SHARE,
    SIGNED_DOSE,
    TOKENS,
    Range,
    check_names,
    check_ranges,
)
from steerfast.experiments.toml import read_toml
from steerfast.io.strict import as_layer
from steerfast.plans.term import Scale

T = TypeVar("T")
# {behaviour: {layer: (negative, positive)}}
Coefficients = Mapping[str, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class BehavioursConfig:
    """The study of several behaviours; the paper's own setting is the preset ``llama-2-7b-chat``.

    train, validation, test: questions of each behaviour for its vector, for choosing, for results (test 0: the rest).
    balanced: as many questions of each answer in every split, see ``questions.splits``.
    layers, coefficients: the grid; each coefficient is tried with both signs, small ones first.
    individual_layers: where single vectors and combined ones are tested. simultaneous: {behaviour: layer}.
    global_coefficients: (first, last, step) of the simultaneous scheme. pair_coefficient: at which behaviours are
    combined in pairs, to tell their interaction. unweighted: the m of combined, where it is not the chosen one.
    chosen: coefficients to take instead of the grid's best. flagged: remarks on some of them, by "behaviour@layer".
    choose: the best coefficient is that of the greatest "matching" score (the paper's), or of the greatest mean "log_odds".
    scale: of all vectors; tax_tokens: how many tokens of text the alignment tax is measured on. examples: prompts that the
    report shows continuations of.
    """

    behaviours: tuple[str, ...]
    train: int
    validation: int
    layers: tuple[int, ...]
    coefficients: tuple[float, ...]
    individual_layers: tuple[int, ...]
    simultaneous: Mapping[str, int]
    global_coefficients: tuple[float, float, float]
    pair_coefficient: float
    test: int = 0
    scale: Scale = "raw"
    choose: Criterion = "matching"
    unweighted: float = 1.0
    seed: int = 13
    balanced: bool = False
    tax_tokens: int = 0
    examples: tuple[str, ...] = ()
    chosen: Coefficients = field(default_factory=dict)
    flagged: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        questions = dict.fromkeys(("train", "validation"), QUESTIONS)
        layers = dict.fromkeys(("layers", "individual_layers", "simultaneous"), LAYER)
        doses = ("global_coefficients", "pair_coefficient", "unweighted", "chosen")
        zero_or_more = {"test": Range(0, QUESTIONS.high), "tax_tokens": Range(0, TOKENS.high)}
        signed = dict.fromkeys(doses, SIGNED_DOSE)
        more = {"coefficients": DOSE, "seed": SEED, **zero_or_more, **signed}
        check_ranges(self, {**questions, **layers, **more})
        check_names("behaviours", self.behaviours)
        if set(self.simultaneous) != set(self.behaviours):
            raise ValueError(
                "simultaneous has a layer for each of the behaviours, and for no other"
            )
        if not set(self.chosen) <= set(self.behaviours):
            raise ValueError(
                "chosen is {behaviour: {layer: (negative, positive)}}, of the behaviours"
            )
        for layers_of in self.chosen.values():
            for layer in layers_of:
                as_layer(layer, "chosen")
        first, last, step = self.global_coefficients
        if step <= 0 or last < first or (last - first) / step > MOST_POINTS:
            raise ValueError(
                f"global_coefficients are (first, last, step), {first:g} to {last:g} by {step:g} here; first comes before "
                f"last, and step is positive and makes at most {MOST_POINTS:_} points"
            )

    @property
    def named_layers(self) -> set[int]:
        """Every layer that the study steers."""
        fixed = {int(layer) for layers in self.chosen.values() for layer in layers}
        return {*self.layers, *self.individual_layers, *self.simultaneous.values(), *fixed}


@dataclass(frozen=True)
class BroadConfig:
    """The study of a broad skill: text against code. text, code: corpora, see ``corpora.read_corpus``.

    samples: texts of each side for the vectors; sample_tokens: cut after so many tokens (the paper: 5000, 4096), or, with
    sample_pieces, into samples of so many each, where there are few texts.
    tokens: how many tokens of each side are predicted, in pieces of ``context`` tokens.
    layers: sets of layers that are steered together. coefficients: grid, ascending, without 0.
    control_layer: where the permuted controls are steered. stop, jump: the paper's rule: a layer ends when code's relative
    accuracy is below ``stop``, and below ``jump`` the next four coefficients are left out. examples: as of behaviours.
    """

    samples: int
    sample_tokens: int
    tokens: int
    context: int
    layers: tuple[tuple[int, ...], ...]
    coefficients: tuple[float, ...]
    control_layer: int
    text: str = "prose"
    code: str = "stdlib"
    scale: Scale = "raw"
    sample_pieces: bool = False
    seed: int = 13
    examples: tuple[str, ...] = ()
    stop: float = 0.05
    jump: float = 0.15

    def __post_init__(self) -> None:
        sizes = dict.fromkeys(("sample_tokens", "tokens"), TOKENS)
        shares = dict.fromkeys(("stop", "jump"), SHARE)
        layers = dict.fromkeys(("layers", "control_layer"), LAYER)
        more = {"samples": QUESTIONS, "context": Range(2, TOKENS.high), "coefficients": DOSE}
        check_ranges(self, {**sizes, **shares, **layers, **more, "seed": SEED})
        if not all(self.layers):
            raise ValueError("layers has an empty set; each set names at least one layer")

    @property
    def named_layers(self) -> set[int]:
        """Every layer that the study steers."""
        return {self.control_layer, *(layer for layers in self.layers for layer in layers)}


@dataclass(frozen=True)
class SparsityConfig:
    """The study of steering pruned models.

    directions: shipped contrast sets. layer: where they are steered. coefficients: of scale ``stream``.
    shares: of the weights of every linear layer, removed by magnitude. patterns: "unstructured", "of 4", see
    ``sparsity.Pruning``.
    """

    directions: tuple[str, ...]
    layer: int
    coefficients: tuple[float, ...]
    shares: tuple[float, ...]
    tax_tokens: int
    patterns: tuple[str, ...] = ("unstructured", "of 4")
    seed: int = 13

    def __post_init__(self) -> None:
        more = {"layer": LAYER, "coefficients": SIGNED_DOSE, "seed": SEED}
        check_ranges(self, {"shares": SHARE, "tax_tokens": TOKENS, **more})
        check_names("directions", self.directions)
        if not any(self.coefficients):
            raise ValueError("coefficients are all 0, which steers nothing")

    @property
    def named_layers(self) -> set[int]:
        """The layer that the study steers."""
        return {self.layer}


@dataclass(frozen=True)
class Preset:
    """A model and the studies that are configured for it."""

    name: str
    model: str
    dtype: str
    behaviours: BehavioursConfig | None = None
    broad: BroadConfig | None = None
    sparsity: SparsityConfig | None = None
    notes: str = ""

    def __post_init__(self) -> None:
        check_names("name", (self.name,))  # a study's folder has it


_STUDIES: dict[str, type[Any]] = {
    "behaviours": BehavioursConfig,
    "broad": BroadConfig,
    "sparsity": SparsityConfig,
}


def presets() -> tuple[str, ...]:
    """The names of the presets that ship."""
    folder = files("steerfast") / "data" / "presets"
    return tuple(sorted(Path(item.name).stem for item in folder.iterdir()))


def load_preset(name_or_path: str | Path) -> Preset:
    """A shipped preset by name, or a TOML file. Raises ValueError naming what is unknown, missing or ill-typed."""
    path = Path(name_or_path)
    if path.suffix != ".toml":
        if str(name_or_path) not in presets():
            raise ValueError(
                f"no preset {str(name_or_path)!r}; give a .toml file, or one of {', '.join(presets())}"
            )
        path = Path(str(files("steerfast") / "data" / "presets" / f"{name_or_path}.toml"))
    table = read_toml(path)
    for kind in _STUDIES:
        if not isinstance(table.get(kind, {}), dict):
            raise ValueError(
                f"{kind} in {path.name} is {table[kind]!r}; it should be a table [{kind}]"
            )
    studies: dict[str, Any] = {
        kind: build(made, table.pop(kind), f"[{kind}] of {path.name}")
        for kind, made in _STUDIES.items()
        if kind in table
    }
    return build(Preset, {"name": path.stem, **table, **studies}, path.name)


def build(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """A configuration from a table of TOML, lists as tuples."""
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{where} has unknown {', '.join(unknown)}; known: {', '.join(known)}")
    missing = [
        name
        for name, one in known.items()
        if name not in table and one.default is MISSING and one.default_factory is MISSING
    ]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    kinds = get_type_hints(kind)
    frozen = {name: _frozen(value) for name, value in table.items()}
    for name, value in frozen.items():
        if not _is(value, kinds[name]):
            wanted = str(known[name].type).replace("Mapping", "a table")
            raise ValueError(f"{name} in {where} is {table[name]!r}; it should be {wanted}")
    try:
        return kind(**frozen)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is what a field's annotation says. Integers pass for floats; true and NaN pass for no number."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return value in inner
    if origin in (Union, UnionType):
        return any(_is(value, each) for each in inner)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        return len(each) == len(value) and all(map(_is, value, each))
    if origin is Mapping:
        named = isinstance(value, dict) and all(_is(key, inner[0]) for key in value)
        return named and all(_is(each, inner[1]) for each in value.values())
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def described(config: Any) -> dict[str, Any]:
    """A configuration as plain data, for results and reports."""
    return asdict(config)


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _frozen(each) for name, each in value.items()}
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value
