"""Fuzzed generations: every mode of ``generate``, padded prompts, caches given, plans that change on the way."""

from __future__ import annotations

import random
from typing import Any

import torch
from fuzz_bench import Bench, Request, asking, plans_of, tokens
from fuzz_forwards import Padded, asks_ids, one_or_many, other_plan, padded
from torch import Tensor

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
    kind = rng.choice(["dynamic", "static", "none", "chunks", "embeddings", "bool"])
    given, width, known = asked(rng, batch), batch.ids.shape[1], {}
    if kind == "static":
        given["cache_implementation"] = "static"
    elif kind == "none":
        given["use_cache"] = False
    elif kind == "chunks":
        given["prefill_chunk_size"] = rng.randrange(1, 5)
    elif kind == "bool" and "attention_mask" in given:
        given["attention_mask"] = batch.mask.bool()
    expect = "answer"
    if kind == "embeddings":
        embedded = bench.plain.get_input_embeddings()(batch.ids).to(bench.dtype)
        given, width = {"inputs_embeds": embedded, "attention_mask": batch.mask}, 0
        if rng.random() < 0.7:
            known = {"prompts": [one.prompt for one in requests]}
        elif any(asks_ids(one.plan) for one in requests):
            expect = "refusal"
    what = f"greedy, {kind}"
    with asking(expect, what), torch.no_grad(), bench.handle.use(plans, **known):
        out = bench.model.generate(**given, **ASKED)
    each_row(bench, requests, out, width, what)


def samples(bench: Bench, rng: random.Random) -> None:
    requests, batch, plans = prompts(bench, rng, rng.randrange(1, 3))
    how = {"do_sample": True, "num_return_sequences": rng.randrange(1, 4), "top_k": 0}
    with asking("answer", "samples"), torch.no_grad(), bench.handle.use(plans):
        torch.manual_seed(rng.randrange(1000))
        out = bench.model.generate(**asked(rng, batch), **{**ASKED, **how})
    each_row(bench, requests, out, batch.ids.shape[1], "samples")


def beams(bench: Bench, rng: random.Random) -> None:
    requests, batch, plans = prompts(bench, rng, rng.randrange(1, 3))
    number = rng.randrange(2, 4)
    how = {"num_beams": number, "num_return_sequences": rng.randrange(1, number + 1)}
    with asking("answer", "beams"), torch.no_grad(), bench.handle.use(plans):
        out = bench.model.generate(**asked(rng, batch), **ASKED, **how)
    share = len(out.sequences) // len(requests)
    for row, sequence in enumerate(out.sequences):
        came_from = out.beam_indices[row].tolist()
        logits = [out.logits[step][at] for step, at in enumerate(came_from[:NEW])]
        new = sequence[batch.ids.shape[1] :]
        check(bench, requests[row // share], new, logits, f"beams, row {row}")


def speculative(bench: Bench, rng: random.Random) -> None:
    """Candidates are read many at a time, rejected, and the cache is cropped."""
    requests, batch, plans = prompts(bench, rng, 1)
    how = rng.choice(["same model", "other model", "lookup"])
    given = {
        "same model": {"assistant_model": bench.twin},
        "other model": {"assistant_model": bench.assistant},
        "lookup": {"prompt_lookup_num_tokens": 2},
    }[how]
    with asking("answer", how), torch.no_grad(), bench.handle.use(plans):
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
    with asking(expect, what), torch.no_grad(), bench.handle.use(plans):
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

    what = f"a change after {step + 1} tokens"
    with asking("answer", what), torch.no_grad(), bench.handle.use(plans) as use:
        out = bench.model.generate(**asked(rng, batch), **ASKED, logits_processor=[change])
    for row, one in enumerate(requests):
        new, logits = out.sequences[row, batch.ids.shape[1] :], [each[row] for each in out.logits]
        changes = [(len(one.prompt) + step, others[row])]
        check(bench, one, new, logits, f"{what}, row {row}", changes=changes)


def behind_a_cache(bench: Bench, rng: random.Random) -> None:
    """A cache with the beginning of a prompt, read under the same plan: what follows is what the whole gives."""
    (one,) = requests = bench.requests(rng, 1, 0)
    ids, seen = torch.tensor([one.prompt]), rng.randrange(1, len(one.prompt))
    averages = bool(one.plan and one.plan.condition and one.plan.condition.averages)
    what = f"generate behind {seen} tokens of a cache"
    with asking("refusal" if averages else "answer", what), torch.no_grad():
        with bench.handle.use(plans_of(requests), prompts=[one.prompt]):
            cache = bench.model(ids[:, :seen], use_cache=True).past_key_values
        with bench.handle.use(one.plan):
            out = bench.model.generate(ids, past_key_values=cache, **ASKED)
    each_row(bench, requests, out, ids.shape[1], what)


def turns(bench: Bench, rng: random.Random) -> None:
    """Two generations in one ``use``, one after the other: nothing of the first is left."""
    requests, batch, plans = prompts(bench, rng, rng.randrange(1, 3))
    again = [tokens(rng, 2) + one.prompt for one in requests]
    with asking("answer", "two generations"), torch.no_grad(), bench.handle.use(plans):
        bench.model.generate(**asked(rng, batch), **ASKED)
        more = padded(rng, again, "left")
        out = bench.model.generate(**asked(rng, more), **ASKED)
    second = [Request(prompt, one.plan, []) for prompt, one in zip(again, requests, strict=True)]
    each_row(bench, second, out, more.ids.shape[1], "the second generation")
