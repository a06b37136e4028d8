"""Fuzzed uses within uses, threads that run one model at once, and what must be refused and leave nothing behind."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import fuzz_forwards
import fuzz_generate
import torch
from fuzz_bench import Bench, Refused, Request, Wrong, asking, draw_prompt, plans_of, tokens
from random_plans import MARK, any_vector

from steerfast import AfterSequence, Condition, Plan, Test, steer

Way = Callable[[Bench, random.Random], None]


def read(bench: Bench, one: Request, what: str, **more: Any) -> None:
    """One request in a forward under whatever is in use, which knows its prompt; compared with its plan."""
    with asking("answer", what), torch.no_grad():
        out = bench.model(torch.tensor([one.tokens]), output_hidden_states=True)
    bench.check(one, out.logits[0], what, streams=[each[0] for each in out.hidden_states[:-1]])


def write(bench: Bench, rng: random.Random, one: Request, what: str) -> None:
    """The same in ``generate``."""
    with asking("answer", what), torch.no_grad():
        out = bench.model.generate(torch.tensor([one.prompt]), **fuzz_generate.ASKED)
    fuzz_generate.each_row(bench, [one], out, len(one.prompt), what)


def nested(bench: Bench, rng: random.Random) -> None:
    """Uses within uses, each of which may change; after each block, what was in force before it."""
    prompt, story = draw_prompt(rng), ["nested:"]
    behind = tokens(rng, rng.randrange(4))

    def looks(plan: Plan | None, prompts: bool) -> None:
        one = Request(prompt, plan, prompt + behind)
        if prompts and rng.random() < 0.6:
            read(bench, one, " ".join(story))
        else:
            write(bench, rng, one, " ".join(story))

    def block(depth: int) -> None:
        plan, known = bench.plan(rng, prompt), rng.random() < 0.7
        given = {"prompts": [prompt]} if known else {}
        with asking("answer", " ".join(story)):
            use = bench.handle.use(plan if rng.random() < 0.5 else [plan], **given)
        with use:
            for _ in range(rng.randrange(1, 4)):
                act = rng.choice(["look", "change", "deeper"])
                story.append(f"{act}{depth}")
                if act == "change":
                    plan = bench.plan(rng, prompt)
                    with asking("answer", " ".join(story)):
                        use.change(plan if use.single else [plan])
                elif act == "deeper" and depth < 3:
                    block(depth + 1)
                    story.append(f"back{depth}")
                looks(plan, known)

    block(1)
    story.append("after")
    looks(None, True)


ALONE: list[Way] = [
    fuzz_forwards.whole,
    fuzz_forwards.chunks,
    fuzz_forwards.packed,
    fuzz_forwards.loop,
    fuzz_generate.greedy,
    fuzz_generate.beams,
    fuzz_generate.changing,
    fuzz_generate.speculative,
    nested,
]


def threads(bench: Bench, rng: random.Random) -> None:
    """Several of the other ways at once, each in a thread of its own, started where another plan is in use."""
    jobs = [(rng.choice(ALONE), rng.randrange(10**9)) for _ in range(rng.randrange(2, 5))]
    errors: list[tuple[str, BaseException]] = []
    around = draw_prompt(rng)
    inherited = Request(around, bench.plan(rng, around), [])

    def run(way: Way, seed: int) -> None:
        mine = random.Random(seed)
        for act in (way, under_inherited, way):
            try:
                with nullcontext() if act is under_inherited else bench.handle.use(None):
                    act(bench, mine)
            except Refused:
                pass
            except BaseException as error:
                errors.append((f"in a thread, {way.__name__}", error))

    def under_inherited(bench: Bench, mine: random.Random) -> None:
        write(bench, mine, inherited, "under what was inherited")

    with bench.handle.use(inherited.plan):
        running = [threading.Thread(target=run, args=job) for job in jobs]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    for what, error in errors:
        if isinstance(error, Wrong):
            raise Wrong(f"{what}, beside {[way.__name__ for way, _ in jobs]}: {error}") from error
        raise error


def refusals(bench: Bench, rng: random.Random) -> None:
    """Something that nobody can honour; the model then answers as ever."""
    handle, model = bench.handle, bench.model
    requests = bench.requests(rng, 3, 2, everywhere=True)
    for one in requests:
        one.plan = one.plan or steer(any_vector(rng), 1.0)
    plans, ids = plans_of(requests), torch.tensor([tokens(rng, 7) for _ in range(3)])
    vector = any_vector(rng)
    absent = steer(vector, 2.0, select=AfterSequence((62, 63, 62, 63, 62, 63)))
    behind = steer(vector, 2.0, select="generated")
    marked = steer(vector, 2.0, select=AfterSequence(MARK))
    mean = Condition(Test("projection", vector, 0, over="mean"))
    averaging = steer(vector, 2.0, condition=mean)
    asked = fuzz_generate.ASKED
    embedded = bench.embedded(ids)

    def cached() -> Any:
        with handle.use(None):
            return model(ids[:, :3], use_cache=True).past_key_values

    def under(plans: Any, call: Callable[[], Any], **known: Any) -> Callable[[], Any]:
        def act() -> None:
            with handle.use(plans, **known):
                call()

        return act

    def changes(other: Any) -> Callable[[], Any]:
        """In the middle of a generation of the three plans."""

        def act() -> None:
            with handle.use(plans) as use:
                calls = [lambda ids, scores: (use.change(other), scores)[1]]
                model.generate(ids, **asked, logits_processor=calls)

        return act

    def forward(**more: Any) -> Callable[[], Any]:
        return lambda: model(ids, **more)

    def generate(**more: Any) -> Callable[[], Any]:
        return lambda: model.generate(**{"inputs": ids, **asked, **more})

    flat = torch.zeros(3, 1, 7, 7, dtype=bench.dtype)
    again = torch.tensor([[0, 1, 2, 0, 1, 2, 3]] * 3)
    cases: dict[str, Callable[[], Any]] = {
        "two plans for three rows": under(plans[:2], forward()),
        "two plans for three prompts": under(plans[:2], generate()),
        "no plans": under([], forward()),
        "two lengths for three rows": under(plans[0], forward(), prompt_lengths=[3, 3]),
        "lengths below zero": under(plans, forward(), prompt_lengths=[3, -1, 2]),
        "lengths that are no counts": under(plans, forward(), prompt_lengths=[3, 2.5, 2]),
        "lengths against prompts": under(
            plans, forward(), prompt_lengths=[3, 3, 3], prompts=[[5, 6]] * 3
        ),
        "a mask of four axes": under(plans, forward(attention_mask=flat)),
        "a mask that is too short": under(
            plans,
            lambda: model(ids, attention_mask=torch.ones_like(ids), past_key_values=cached()),
        ),
        "a sequence that is not there": under(absent, forward()),
        "a sequence that no prompt has": under(absent, generate()),
        "what is behind prompts, in a prompt": under(behind, forward()),
        "what is behind prompts, nobody knows where": under(
            behind, lambda: model(ids, past_key_values=cached())
        ),
        "a sequence in embeddings": under(marked, lambda: model(inputs_embeds=embedded)),
        "a sequence in embeddings of generate": under(
            marked, lambda: model.generate(inputs_embeds=embedded, **asked)
        ),
        "packed rows behind a cache": under(
            steer(vector, 1.0, select="prompt"),
            lambda: model(ids, position_ids=again, past_key_values=cached()),
        ),
        "a mean over a prompt that was not read": under(
            averaging, lambda: model.generate(ids, past_key_values=cached(), **asked)
        ),
        "generate of the class": under(behind, lambda: type(model).generate(model, ids, **asked)),
        "a change to two plans": changes(plans[:2]),
        "a change to one for all": changes(plans[0]),
        "a change to a new condition": changes([averaging, *plans[1:]]),
        "a vector for a plan": under(vector, forward()),
        "a plan of another width": under(steer(narrow(), 1.0), forward()),
    }
    name = rng.choice(sorted(cases))
    refused = None
    try:
        with asking("refusal", name), torch.no_grad():
            cases[name]()
    except Refused as error:
        refused = error
    one = bench.requests(rng, 1, 2)[0]
    with asking("answer", f"after {name}"):
        use = handle.use(one.plan, prompts=[one.prompt])
    with use:
        read(bench, one, f"after {name}")
        write(bench, rng, one, f"after {name}")
    assert refused is not None
    raise refused


def narrow() -> Any:
    from steerfast import SteeringVector

    return SteeringVector("narrow", {0: torch.ones(8)})
