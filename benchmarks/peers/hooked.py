"""Libraries that steer by forward hooks which they register themselves, through objects of theirs that hold a vector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from peers.peer import Call, Peer, Task, logits_of, removing


@contextmanager
def steering_vectors(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    from steering_vectors import SteeringVector, ablation_operator

    operator = ablation_operator() if task.operation == "ablate" else None
    start = task.start if task.operation == "add_from" else 0
    steering = SteeringVector(task.like(model)).apply(
        model, multiplier=task.coefficient, operator=operator, min_token_index=start
    )
    with steering:
        yield logits_of(model)


@contextmanager
def rotalabs_steer(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    from rotalabs_steer import ActivationInjector, SteeringVector

    vectors = [
        SteeringVector("task", layer, vector, "model") for layer, vector in task.like(model).items()
    ]
    with ActivationInjector(model, vectors, strength=task.coefficient):
        yield logits_of(model)


@contextmanager
def repsteer(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    import repsteer as rs
    from repsteer.artifacts.base import ArtifactMetadata, DirectionArtifact

    wrapped = rs.models.from_model(model, model_id="model", revision="r0")
    ablating = task.operation == "ablate"
    operator = rs.operators.RemoveProjection() if ablating else rs.operators.Add()
    strength = rs.schedules.Constant(1.0 if ablating else task.coefficient)
    everywhere: tuple[Any, Any] = (rs.positions.AllTokens(), "both")
    wanted = [everywhere]
    by_position = task.operation == "add_from"
    if by_position:
        # Its indices count from the start of the current forward: the prompt's, and then each decoded token.
        rest = range(task.start, model.config.max_position_embeddings)
        wanted = [(rs.positions.TokenIndices(rest), "both"), (rs.positions.AllTokens(), "decode")]

    def interventions() -> Iterator[Any]:
        for layer, vector in task.like(model).items():
            site = rs.sites.resid_post(layer)
            metadata = ArtifactMetadata(model_id="model", model_revision="r0", site=site)
            for positions, phase in wanted:
                yield rs.Intervention(
                    artifact=DirectionArtifact(metadata, vector),
                    operator=operator,
                    positions=positions,
                    strength=strength,
                    phase=phase,
                )

    plan = wrapped.compile(rs.SteeringPlan(list(interventions())), compatibility="dimension")
    tracker = wrapped.generation_tracker

    def call(input_ids: Tensor, past_key_values: Any = None, **inputs: Any) -> Tensor:
        # Prompt and decoding are told apart only inside a generation, which its own generate() opens like this.
        if by_position and past_key_values is not None and past_key_values.get_seq_length() == 0:
            tracker.end()
            mask = inputs.get("attention_mask")
            tracker.begin(input_ids=input_ids, inputs_embeds=None, attention_mask=mask)
        return wrapped(input_ids=input_ids, past_key_values=past_key_values, **inputs).logits

    try:
        with wrapped.steer(plan):
            yield call
    finally:
        tracker.end()
        wrapped.close()


@contextmanager
def pysteer(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    from activation_manager.SteeredModelWrapper import SteeredModelWrapper
    from enums.ApplyFromModeEnum import ApplyFromModeEnum
    from steering_strategy.GeneralSteeringStrategy import GeneralSteeringStrategy

    wrapper = SteeredModelWrapper(
        model,
        GeneralSteeringStrategy(dict(task.vectors), normalize_to_unit_norm=False),
        alpha=task.coefficient,
        apply_from_token=task.start if task.operation == "add_from" else 0,
        apply_from_mode=ApplyFromModeEnum.FIXED,
    )

    def call(input_ids: Tensor, past_key_values: Any = None, **inputs: Any) -> Tensor:
        # An empty cache is a new prompt, which the wrapper sees only where there is none at all.
        if past_key_values is not None and past_key_values.get_seq_length() == 0:
            steered.reset_prompt_state()
        return steered(input_ids=input_ids, past_key_values=past_key_values, **inputs).logits

    with wrapper as steered:
        yield call


@contextmanager
def domainsteer(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    from domainsteer.steering import MultiLayerSteering

    # It writes a chat template into a tokenizer that has none; a stand-in keeps ours as it is.
    steering = MultiLayerSteering(
        model,
        SimpleNamespace(chat_template=""),
        {layer: vector / vector.norm() for layer, vector in task.vectors.items()},
    )
    handles = steering._register_hooks(task.coefficient, None)  # what its generate() does
    with removing(handles):
        yield logits_of(model)


@contextmanager
def llm_steer(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    from llm_steer import Steer, SteerElement

    steer = Steer(model, tokenizer)
    for layer, vector in task.like(model).items():
        element = SteerElement(text="", tensor=vector[None, None], coeff=task.coefficient)
        steer._add_steer_vector(layer, element)  # as its add() does with what a text activated
    try:
        yield logits_of(model)
    finally:
        steer.reset_all()
        for layer in task.vectors:  # it puts the method back as an attribute of the instance
            vars(model.model.layers[layer]).pop("forward", None)


PEERS = (
    Peer(
        "steering-vectors",
        "steering-vectors",
        "main",
        "MIT",
        steering_vectors,
        frozenset({"add", "ablate", "add_from"}),
        False,
        "block output",
        "hook that builds a mask on the CPU at each call and writes in place; min_token_index counts from the "
        "current chunk; apply(token_indices=...) raises UnboundLocalError; pins transformers < 5",
    ),
    Peer(
        "rotalabs-steer",
        "rotalabs-steer",
        "main",
        "Apache-2.0",
        rotalabs_steer,
        frozenset({"add"}),
        False,
        "block output",
        "hook, strength * vector at each call; all, first or last token only",
    ),
    Peer(
        "repsteer",
        "repsteer",
        "main",
        "Apache-2.0",
        repsteer,
        frozenset({"add", "ablate", "add_from"}),
        False,
        "block output",
        "hook with selector, gate, clone and blend at each call, one host sync a layer; positions count from the "
        "current forward, prompt and decoding are told apart only inside a generation",
    ),
    Peer(
        "pysteer",
        "pysteer-adaptation",
        "main",
        "MPL-2.0",
        pysteer,
        frozenset({"add", "add_from"}),
        False,
        "block output",
        "hook that rebuilds masks at each call and writes in place through an indexed copy; no beams; pins "
        "transformers < 5",
    ),
    Peer(
        "domainsteer",
        "domainsteer",
        "main",
        "MIT",
        domainsteer,
        frozenset(),
        False,
        "block output",
        "hook, h + c |h| v only: no equivalent among these operations; its API is generate() on one prompt",
    ),
    Peer(
        "llm-steer",
        "llm-steer",
        "main",
        "none stated",
        llm_steer,
        frozenset(),
        False,
        "block input",
        "patched forward, h + c v RMS(last token of the chunk) / RMS(v): no equivalent; vectors from text only (here "
        "put in as its add() would), kept in a dict of the class",
    ),
)
