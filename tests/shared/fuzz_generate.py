"""Fuzzed generations: every mode of ``generate``, padded prompts, caches given, plans that change on the way."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
from batching_config import batching_config
from fuzz_batches import Padded, asks_ids, one_or_many, padded, quiet
from fuzz_bench import Bench, Request, asking, tokens
from fuzz_forwards import other_plan
from torch import Tensor

from steerfast.serving import generate_batch

NEW = 5
ASKED = {"max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": None, "do_sample": False}
ASKED |= {"return_dict_in_generate": True, "output_logits": True, "output_scores": True}


def prompts(
    bench: Bench, rng: random.Random, rows: int, **more: Any
) -> tuple[list[Request], Padded, Any]:
    """(requests, their prompts padded on the left, what ``use`` is given)."""
    requests = bench.requests(rng, rows, 0, **more)
    plans = one_or_many(rng, requests)
    return requests, padded(rng, [one.prompt for one in requests], "left"), plans


def asked(rng: random.Random, batch: Padded) -> dict[str, Any]:
    """Prompts as ``generate`` takes them; a mask may be left for it to infer."""
    if rng.random() < 0.2:
        return {"inputs": batch.ids}
    return {"inputs": batch.ids, "attention_mask": batch.mask}


def held(rng: random.Random) -> dict[str, Any]:
    """How keys and values are kept, and prompts read."""
    kinds: list[dict[str, Any]] = [
        {},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"prefill_chunk_size": rng.randrange(1, 5)},
    ]
    return rng.choice(kinds)


def check(
    bench: Bench, one: Request, new: Tensor, logits: list[Tensor], what: str, **more: Any
) -> None:
    """``logits``, one [V] for each new token, are those from which the oracle would have chosen it."""
    read = Request(one.prompt, one.plan, one.prompt + new.tolist())
    bench.check(read, torch.stack(logits), what, at=len(one.prompt) - 1, **more)


def each_row(
    bench: Bench, requests: list[Request], out: Any, width: int, what: str, **more: Any
) -> None:
    share = len(out.sequences) // len(requests)
    for row, sequence in enumerate(out.sequences):
        logits = [step[row] for step in out.logits]
        check(bench, requests[row // share], sequence[width:], logits, f"{what}, row {row}", **more)


def greedy(bench: Bench, rng: random.Random) -> None:
    """With any cache, or none; prompts in chunks; prompts as embeddings."""
    requests, batch, plans = prompts(bench, rng, rng.randrange(1, 4))
    kind = rng.choice(["ids", "ids", "embeddings", "bool"])
    given, width, known = asked(rng, batch), batch.ids.shape[1], {}
    if kind == "bool" and "attention_mask" in given:
        given["attention_mask"] = batch.mask.bool()
    expect = "answer"
    if kind == "embeddings":
        given = {"inputs_embeds": bench.embedded(batch.ids), "attention_mask": batch.mask}
        width = 0
        if rng.random() < 0.7:
            known = {"prompts": [one.prompt for one in requests]}
        elif any(asks_ids(one.plan) for one in requests):
            expect = "refusal"
    how = held(rng)
    if kind == "embeddings":
        how.pop("prefill_chunk_size", None)  # transformers has chunks of ids only
    what = f"greedy, {kind}, {how}"
    with asking(expect, what), quiet(rng), bench.handle.use(plans, **known):
        out = bench.model.generate(**given, **ASKED, **how)
    each_row(bench, requests, out, width, what)


def samples(bench: Bench, rng: random.Random) -> None:
    requests, batch, plans = prompts(bench, rng, rng.randrange(1, 3))
    how = {"num_return_sequences": rng.randrange(1, 4), **held(rng)}
    what, sampled = f"samples, {how}", {"do_sample": True, "top_k": 0}
    with asking("answer", what), quiet(rng), bench.handle.use(plans):
        torch.manual_seed(rng.randrange(1000))
        out = bench.model.generate(**asked(rng, batch), **{**ASKED, **how, **sampled})
    each_row(bench, requests, out, batch.ids.shape[1], what)


def beams(bench: Bench, rng: random.Random) -> None:
    requests, batch, plans = prompts(bench, rng, rng.randrange(1, 3))
    number = rng.randrange(2, 4)
    how = {"num_beams": number, "num_return_sequences": rng.randrange(1, number + 1), **held(rng)}
    what = f"beams, {how}"
    with asking("answer", what), quiet(rng), bench.handle.use(plans):
        out = bench.model.generate(**asked(rng, batch), **ASKED, **how)
    each_beam(bench, requests, out, batch.ids.shape[1], what)


def each_beam(
    bench: Bench, requests: list[Request], out: Any, width: int, what: str, **more: Any
) -> None:
    share = len(out.sequences) // len(requests)
    for row, sequence in enumerate(out.sequences):
        came_from = out.beam_indices[row].tolist()
        logits = [out.logits[step][at] for step, at in enumerate(came_from[:NEW])]
        check(bench, requests[row // share], sequence[width:], logits, f"{what}, row {row}", **more)


def speculative(bench: Bench, rng: random.Random) -> None:
    """Candidates are read many at a time, rejected, and the cache is cropped."""
    requests, batch, plans = prompts(bench, rng, 1)
    how = rng.choice(["same model", "other model", "lookup"])
    given = {
        "same model": {"assistant_model": bench.twin},
        "other model": {"assistant_model": bench.assistant},
        "lookup": {"prompt_lookup_num_tokens": 2},
    }[how]
    with asking("answer", how), quiet(rng), bench.handle.use(plans):
        out = bench.model.generate(**asked(rng, batch), **ASKED, **given)
    each_row(bench, requests, out, batch.ids.shape[1], f"speculative, {how}")


def everywhere(request: Request) -> bool:
    """Whether a plan treats all tokens of a request alike."""
    plan = request.plan
    if plan is None:
        return True
    return not (plan.schedule or plan.condition) and all(one.select == "all" for one in plan.terms)


def guidance(bench: Bench, rng: random.Random) -> None:
    """Both of its passes are steered by plans that treat all tokens alike; others are refused."""
    requests, batch, plans = prompts(bench, rng, rng.randrange(1, 3), everywhere=rng.random() < 0.8)
    strength, what = 1.5, "guidance"
    how = {"guidance_scale": strength, "use_cache": rng.random() < 0.8}
    expect = "answer" if all(everywhere(one) for one in requests) else "either"
    with asking(expect, what), quiet(rng), bench.handle.use(plans):
        out = bench.model.generate(
            batch.ids, attention_mask=batch.mask, **{**ASKED, "output_logits": False}, **how
        )
    for row, one in enumerate(requests):
        new = out.sequences[row, batch.ids.shape[1] :].tolist()
        free, end = [one.prompt[-1], *new], len(one.prompt) - 1
        without = {
            shake: bench.oracle(Request(free[:1], one.plan, free), shake=shake).logits
            for shake in (False, True)
        }

        def guided(logits: Tensor, shaken: bool, without=without, end=end) -> Tensor:
            line = logits.log_softmax(-1).clone()
            other = without[shaken].log_softmax(-1)
            line[end:] = strength * (line[end:] - other) + other
            return line

        scores = torch.stack([step[row] for step in out.scores])
        read = Request(one.prompt, one.plan, one.prompt + new)
        bench.check(read, scores, f"{what}, row {row}", at=end, through=guided)


def changing(bench: Bench, rng: random.Random) -> None:
    """Other plans from the middle of a generation on."""
    requests, batch, plans = prompts(bench, rng, rng.randrange(1, 3))
    others = [other_plan(bench, rng, one) for one in requests]
    if not isinstance(plans, list):
        others = others[:1] * len(requests)
    step, calls = rng.randrange(NEW - 1), 0

    def change(ids: Tensor, scores: Tensor) -> Tensor:
        nonlocal calls
        if calls == step:
            use.change(others if isinstance(plans, list) else others[0])
        calls += 1
        return scores

    how = rng.choice(
        [{}, {"num_beams": 2}, {"do_sample": True}, {"cache_implementation": "static"}]
    )
    what = f"a change after {step + 1} tokens, {how}"
    given = {**ASKED, **how, "logits_processor": [change]}
    with asking("answer", what), quiet(rng), bench.handle.use(plans) as use:
        out = bench.model.generate(**asked(rng, batch), **given)
    width, each = batch.ids.shape[1], each_beam if "num_beams" in how else each_row
    for row, one in enumerate(requests):
        mine = SimpleNamespace(sequences=out.sequences[row : row + 1], logits=out.logits)
        mine.logits = [step[row : row + 1] for step in out.logits]
        if "num_beams" in how:
            mine.logits, mine.beam_indices = out.logits, out.beam_indices[row : row + 1]
        changes = [(len(one.prompt) + step, others[row])]
        each(bench, [one], mine, width, f"{what}, row {row}", changes=changes)


def behind_a_cache(bench: Bench, rng: random.Random) -> None:
    """A cache with the beginning of prompts, read under the same plans: what follows is what the whole gives. Ids of all of the
    prompts, or of what is new."""
    requests, batch, plans = prompts(bench, rng, rng.randrange(1, 3))
    shortest, width = min(len(one.prompt) for one in requests), batch.ids.shape[1]
    seen, new = width - shortest + rng.randrange(1, shortest), rng.random() < 0.4
    conditions = [one.plan.condition for one in requests if one.plan and one.plan.condition]
    averages = any(condition.averages for condition in conditions)
    known = {"prompts": [one.prompt for one in requests]}
    what = f"generate behind {seen} columns of a cache, {'new' if new else 'all'} ids"
    with asking("refusal" if averages else "answer", what), quiet(rng):
        with bench.handle.use(plans, **known):
            cache = bench.model(
                batch.ids[:, :seen],
                attention_mask=batch.mask[:, :seen],
                position_ids=batch.places[:, :seen],
                use_cache=True,
            ).past_key_values
        with bench.handle.use(plans, **(known if new else {})):
            ids = batch.ids[:, seen:] if new else batch.ids
            given = {"attention_mask": batch.mask, "past_key_values": cache}
            out = bench.model.generate(ids, **given, **ASKED)
    each_row(bench, requests, out, ids.shape[1], what)


def turns(bench: Bench, rng: random.Random) -> None:
    """Two generations in one ``use``, one after the other: nothing of the first is left."""
    requests, batch, plans = prompts(bench, rng, rng.randrange(1, 3))
    again = [tokens(rng, 2) + one.prompt for one in requests]
    with asking("answer", "two generations"), quiet(rng), bench.handle.use(plans):
        bench.model.generate(**asked(rng, batch), **ASKED)
        more = padded(rng, again, "left")
        out = bench.model.generate(**asked(rng, more), **ASKED)
    second = [Request(prompt, one.plan, []) for prompt, one in zip(again, requests, strict=True)]
    each_row(bench, second, out, more.ids.shape[1], "the second generation")


def asking_again(bench: Bench, rng: random.Random) -> None:
    """Forwards inside of ``generate`` that it did not prepare: rows as they are or doubled, or a refusal."""
    requests, batch, plans = prompts(bench, rng, 2, everywhere=rng.random() < 0.8)
    layout = rng.choice(["as they are", "all, then all", "each twice"])
    width, answers = batch.ids.shape[1], []

    def again(rows: Tensor) -> Tensor:
        if layout == "as they are":
            return rows
        return rows.repeat(2, 1) if layout == "all, then all" else rows.repeat_interleave(2, 0)

    def ask(ids: Tensor, scores: Tensor) -> Tensor:
        mask = torch.cat([batch.mask, torch.ones_like(ids[:, width:])], 1)
        places = (mask.cumsum(-1) - 1).clamp(min=0)
        given = {"attention_mask": again(mask), "position_ids": again(places), "use_cache": False}
        answers.append(bench.model(again(ids), **given).logits[:, -1])
        return scores

    alike = not isinstance(plans, list) or requests[0].plan == requests[1].plan
    clear = all(everywhere(one) for one in requests) and (alike or layout == "as they are")
    what = f"asked again in generate, {layout}"
    with asking("answer" if clear else "either", what), quiet(rng), bench.handle.use(plans):
        out = bench.model.generate(
            batch.ids, attention_mask=batch.mask, **ASKED, logits_processor=[ask]
        )
    order = again(torch.arange(2)[:, None])[:, 0].tolist()
    for row, number in enumerate(order):
        logits = [step[row] for step in answers]
        check(bench, requests[number], out.sequences[number, width:], logits, f"{what}, row {row}")


def continuous(bench: Bench, rng: random.Random) -> None:
    """``generate_batch``: requests join and leave, prompts come in parts, blocks of the cache are shared."""
    requests = bench.requests(rng, rng.randrange(2, 7), 0)
    counts = [rng.randrange(1, NEW + 1) for _ in requests]
    config = batching_config(16, num_blocks=64, max_batch_tokens=8)
    asked = [
        (one.prompt, one.plan, {"max_new_tokens": count})
        for one, count in zip(requests, counts, strict=True)
    ]
    with asking("answer", "generate_batch"):
        answers = generate_batch(bench.handle, asked, progress=False, config=config)
    for row, (one, count, answer) in enumerate(zip(requests, counts, answers, strict=True)):
        assert len(answer.tokens) == count
        read = Request(one.prompt, one.plan, one.prompt + list(answer.tokens))
        following = torch.tensor([*read.tokens[1:], 0])[:, None]

        def behind(logits: Tensor, shaken: bool, following=following) -> Tensor:
            """How far what was chosen lies behind what is greatest."""
            return logits.amax(-1, keepdim=True) - logits.gather(1, following)

        given = torch.zeros(count, 1), f"generate_batch, request {row}"
        bench.check(read, *given, at=len(one.prompt) - 1, through=behind)
