"""A study in its folder: what it runs on, its vectors, its trials and its results.

folder/study.json              what the study is, see ``claim``
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
from steerfast.experiments.claim import claim_folder, own
from steerfast.experiments.config import (
    BehavioursConfig,
    BroadConfig,
    SparsityConfig,
    described,
)
from steerfast.experiments.corpora import split_corpus
from steerfast.experiments.measure import Laboratory, Pieces, cut
from steerfast.experiments.progress import Stage
from steerfast.experiments.questions import Split
from steerfast.experiments.ranges import check_names
from steerfast.experiments.trials import Spread, Trials, key_of
from steerfast.extraction.contrast import ContrastSet
from steerfast.extraction.extract import extract_mean, extract_pairs
from steerfast.io import load_vector, save_vector
from steerfast.models import find_decoder
from steerfast.models.load import Loaded
from steerfast.models.tokens import token_ids
from steerfast.plans.vector import SteeringVector


@dataclass(frozen=True)
class Work:
    """A study that has looked at its data: all that can be told to be wrong before a model is loaded has been.

    data: digests of what it reads. run: what it does, with a model in its folder.
    """

    kind: str
    config: Any
    data: Mapping[str, str]
    run: Callable[[Study], dict[str, Any]]

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from other studies, the model aside."""
        return {"kind": self.kind, "config": own(described(self.config)), "data": dict(self.data)}


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

        check_names("a study's vectors", (identity["name"],))
        key = key_of(
            {**identity, "model": (laboratory or self.laboratory).digest, "code": __version__}
        )[:12]
        path = self.folder / "vectors" / f"{identity['name']}-{key}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "locks" / f"vector-{key}.lock"):
            if not path.exists():
                save_vector(make(), path)
            return load_vector(path)

    def run(self, work: Work) -> dict[str, Any]:
        """Do the work, and save what it found. ValueError, before anything is measured, for a layer that the model does
        not have, or where the folder is another study's."""
        layers, named = len(find_decoder(self.laboratory.model).layers), work.config.named_layers
        beyond = [layer for layer in sorted(named) if not 0 <= layer < layers]
        if beyond:
            raise ValueError(
                f"the study of {work.kind} names layer {beyond[0]}, but {self.laboratory.name} has layers "
                f"0..{layers - 1}; change the preset"
            )
        claim_folder(self.folder, {**work.identity, "model": self.laboratory.digest})
        return self.save(work.run(self))

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


def split_questions(config: BehavioursConfig, data: str | Path | None = None) -> dict[str, Split]:
    """The questions of every behaviour, read and split. data: a folder of them; None: those that ship."""
    loaded = {name: questions.load(data, name) for name in config.behaviours}
    return questions.splits(
        loaded, config.train, config.validation, config.test or None, config.seed, config.balanced
    )


def prepare_behaviours(
    study: Study,
    config: BehavioursConfig,
    splits: Mapping[str, Split],
    texts: Sequence[str] | None = None,
) -> Prepared:
    """A vector of each behaviour, and the text, as the model's tokens, that capability is measured on."""
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
    return Prepared(dict(splits), vectors, text)


def study_behaviours(
    config: BehavioursConfig,
    *,
    data: str | Path | None = None,
    texts: Sequence[str] | None = None,
) -> Work:
    """The study of several behaviours. data: a folder of questions; None: those that ship. texts: for the tax."""
    splits = split_questions(config, data)
    digests = {
        name: questions.digest([one for part in split for one in part])
        for name, split in splits.items()
    }

    def run(study: Study) -> dict[str, Any]:
        prepared = prepare_behaviours(study, config, splits, texts)
        results = behaviours.run(
            study.laboratory,
            config,
            splits,
            prepared.vectors,
            study.trials,
            study.stage,
            prepared.text,
            study.spread,
        )
        sizes = {name: [len(part) for part in split] for name, split in splits.items()}
        results["data"] = {
            name: {"digest": digest, "sizes": sizes[name]} for name, digest in digests.items()
        }
        return results

    return Work("behaviours", config, {**digests, "text": key_of({"texts": texts})}, run)


def study_broad(config: BroadConfig, *, text: Sequence[str], code: Sequence[str]) -> Work:
    """The study of a broad skill. text, code: texts of each side; some make the vector, others measure."""
    sides = {"text": text, "code": code}
    parts = {
        name: split_corpus(name, texts, config.samples, config.seed)
        for name, texts in sides.items()
    }

    def run(study: Study) -> dict[str, Any]:
        laboratory = study.laboratory
        advance = study.stage("vectors", 2)
        means, held_out = {}, {}
        for name, (first, rest) in parts.items():
            samples = _samples(laboratory.tokenizer, first, config)
            held_out[name] = cut(name, laboratory.tokenizer, rest, config.context, config.tokens)

            def make(name: str = name, samples: Any = samples) -> SteeringVector:
                return extract_mean(laboratory.model, samples, name=name)

            identity = {"name": name, "data": Pieces(name, samples).digest, "position": "last"}
            means[name] = study.vector(identity, make)
            advance()
        return broad.run(
            laboratory, config, means, held_out, study.trials, study.stage, study.spread
        )

    return Work("broad", config, {name: key_of({"texts": sides[name]}) for name in sides}, run)


def study_sparsity(config: SparsityConfig, *, texts: Sequence[str]) -> Work:
    """The study of pruned models. texts: for the alignment tax."""
    sets = {name: contrast.load(name) for name in config.directions}
    pairs = {each.name: [one.parts for one in each.train] for each in sets.values()}

    def run(study: Study) -> dict[str, Any]:
        def make_vector(each: ContrastSet, laboratory: Laboratory) -> SteeringVector:
            def make() -> SteeringVector:
                model, tokenizer = laboratory.model, laboratory.tokenizer
                return extract_pairs(model, tokenizer, each.train, name=each.name, position="mean")

            identity = {"name": each.name, "data": pairs[each.name], "position": "mean"}
            return study.vector(identity, make, laboratory)

        def text(laboratory: Laboratory) -> Pieces:
            return cut("text", laboratory.tokenizer, texts, 256, config.tax_tokens)

        dense = study.laboratory
        loaded = Loaded(dense.model, dense.tokenizer, dense.name)
        return sparsity.run(loaded, config, sets, make_vector, text, study.trials, study.stage)

    digests = {name: key_of({"pairs": each}) for name, each in pairs.items()}
    return Work("sparsity", config, {**digests, "text": key_of({"texts": texts})}, run)


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
