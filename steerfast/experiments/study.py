"""A study in its folder: what it runs on, its vectors, its trials and its results.

folder/vectors/*.safetensors   named by what they follow from, made once
folder/trials.jsonl            see ``trials``
folder/results.json            everything that was found, the same after any number of interruptions
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steerfast import __version__, contrast
from steerfast.experiments import behaviours, broad, questions, sparsity
from steerfast.experiments.config import BehavioursConfig, BroadConfig, SparsityConfig
from steerfast.experiments.corpora import split_corpus
from steerfast.experiments.measure import Laboratory, Pieces, cut
from steerfast.experiments.progress import Stage
from steerfast.experiments.questions import Split
from steerfast.experiments.trials import Spread, Trials, key_of
from steerfast.extraction.contrast import ContrastSet
from steerfast.extraction.extract import extract_mean, extract_pairs
from steerfast.io import load_vector, save_vector
from steerfast.models.load import Loaded
from steerfast.models.tokens import token_ids
from steerfast.plans.vector import SteeringVector


@dataclass
class Study:
    """Where a study runs: a model, a folder, and who is told of its progress."""

    laboratory: Laboratory
    folder: Path
    stage: Stage
    spread: Spread | None = None

    def __post_init__(self) -> None:
        self.trials = Trials(self.folder)

    def vector(
        self,
        identity: Mapping[str, Any],
        make: Callable[[], SteeringVector],
        laboratory: Laboratory | None = None,
    ) -> SteeringVector:
        """The vector that follows from an identity (and the model, and the code): read, or made and kept."""
        from filelock import FileLock

        key = key_of(
            {**identity, "model": (laboratory or self.laboratory).digest, "code": __version__}
        )[:12]
        path = self.folder / "vectors" / f"{identity['name']}-{key}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "locks" / f"vector-{key}.lock"):
            if not path.exists():
                save_vector(make(), path)
            return load_vector(path)

    def save(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``results.json``, with the model and the code's version: whole or not at all, and without anything that
        a rerun would change. Gives what a later reader of the file will get."""
        path = self.folder / "results.json"
        facts = {
            "model": {"name": self.laboratory.name, "digest": self.laboratory.digest},
            "code": __version__,
        }
        text = json.dumps({**facts, **results}, indent=1, sort_keys=True, allow_nan=False)
        temporary = path.with_name("results.json.tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
        return dict(json.loads(text))


@dataclass
class Prepared:
    """What the study of behaviours and ``tune`` start from."""

    splits: dict[str, Split]
    vectors: dict[str, SteeringVector]
    text: Pieces | None


def prepare_behaviours(
    study: Study,
    config: BehavioursConfig,
    data: str | Path | None = None,
    texts: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
) -> Prepared:
    """Questions split, vectors made. The splits of a behaviour do not depend on ``only``, which says whose vectors are wanted."""
    loaded = {name: questions.load(data, name) for name in config.behaviours}
    splits = questions.splits(
        loaded, config.train, config.validation, config.test or None, config.seed, config.balanced
    )
    if only is not None:
        splits = {name: splits[name] for name in only}
    laboratory = study.laboratory
    advance = study.stage("vectors", len(splits))
    vectors = {}
    for name, split in splits.items():
        pairs = [question.pair for question in split.train]

        def make(name: str = name, pairs: Any = pairs) -> SteeringVector:
            return extract_pairs(laboratory.model, laboratory.tokenizer, pairs, name=name)

        identity = {"name": name, "data": questions.digest(split.train), "position": "last"}
        vectors[name] = study.vector(identity, make)
        advance()
    text: Pieces | None = None
    if config.tax_tokens and texts:
        text = cut("text", laboratory.tokenizer, texts, 256, config.tax_tokens)
    return Prepared(splits, vectors, text)


def study_behaviours(
    study: Study,
    config: BehavioursConfig,
    *,
    data: str | Path | None = None,
    texts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The study of several behaviours, saved in its folder. data: a folder of questions; None: those that ship."""
    prepared = prepare_behaviours(study, config, data, texts)
    results = behaviours.run(
        study.laboratory,
        config,
        prepared.splits,
        prepared.vectors,
        study.trials,
        study.stage,
        prepared.text,
        study.spread,
    )
    results["data"] = {
        name: {
            "digest": questions.digest([one for part in split for one in part]),
            "sizes": [len(part) for part in split],
        }
        for name, split in prepared.splits.items()
    }
    return study.save(results)


def study_broad(
    study: Study,
    config: BroadConfig,
    *,
    text: Sequence[str],
    code: Sequence[str],
) -> dict[str, Any]:
    """The study of a broad skill, saved in its folder. text, code: texts of each side; some make the vector, others measure."""
    laboratory = study.laboratory
    advance = study.stage("vectors", 2)
    means, held_out = {}, {}
    for name, texts in (("text", text), ("code", code)):
        first, rest = split_corpus(name, texts, config.samples, config.seed)
        samples = _samples(laboratory.tokenizer, first, config)
        held_out[name] = cut(name, laboratory.tokenizer, rest, config.context, config.tokens)

        def make(name: str = name, samples: Any = samples) -> SteeringVector:
            return extract_mean(laboratory.model, samples, name=name)

        identity = {"name": name, "data": Pieces(name, samples).digest, "position": "last"}
        means[name] = study.vector(identity, make)
        advance()
    results = broad.run(
        laboratory, config, means, held_out, study.trials, study.stage, study.spread
    )
    return study.save(results)


def study_sparsity(study: Study, config: SparsityConfig, *, texts: Sequence[str]) -> dict[str, Any]:
    """The study of pruned models, saved in its folder. texts: for the alignment tax."""
    sets = {name: contrast.load(name) for name in config.directions}

    def make_vector(each: ContrastSet, laboratory: Laboratory) -> SteeringVector:
        def make() -> SteeringVector:
            model, tokenizer = laboratory.model, laboratory.tokenizer
            return extract_pairs(model, tokenizer, each.train, name=each.name, position="mean")

        pairs = [one.parts for one in each.train]
        identity = {"name": each.name, "data": pairs, "position": "mean"}
        return study.vector(identity, make, laboratory)

    def text(laboratory: Laboratory) -> Pieces:
        return cut("text", laboratory.tokenizer, texts, 256, config.tax_tokens)

    dense = study.laboratory
    loaded = Loaded(dense.model, dense.tokenizer, dense.name)
    results = sparsity.run(loaded, config, sets, make_vector, text, study.trials, study.stage)
    return study.save(results)


def _samples(
    tokenizer: Any, texts: Sequence[str], config: BroadConfig
) -> tuple[tuple[int, ...], ...]:
    """Texts as token ids: each cut after ``sample_tokens``, or into samples of so many."""
    size, samples = config.sample_tokens, []
    for text in texts:
        ids = tuple(token_ids(tokenizer, text))
        ends = range(0, len(ids), size) if config.sample_pieces else (0,)
        samples += [ids[at : at + size] for at in ends]
    # Of pieces as many as asked for; what a text ends with may be too short to say anything.
    return tuple([one for one in samples if 2 * len(one) >= min(size, 16)][: config.samples])
