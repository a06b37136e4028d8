"""Fuzzed forwards of one's own: whole rows, chunks over a cache, packed rows, decoding loops that rewind."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import torch
from fuzz_batches import (
    SIDES,
    Padded,
    asks_end,
    asks_ids,
    one_or_many,
    padded,
    quiet,
    shown,
    told,
    unsaid,
)
from fuzz_bench import Bench, Expect, Refused, Request, asking, plans_of, tokens
from transformers import StaticCache

from steerfast import Plan


def whole(bench: Bench, rng: random.Random) -> None:
    """Prompts and what follows, padded on any side, by ids or embeddings: logits and all streams."""
    requests = bench.requests(rng, rng.randrange(1, 4), 0)
    for one in requests:
        one.tokens = one.prompt + tokens(rng, rng.randrange(6))
    plans = one_or_many(rng, requests)
    kind, known = told(rng, requests)
    if kind == "nothing":
        for one in requests:
            one.prompt = one.tokens
    side = rng.choice(SIDES)
    batch = padded(rng, [one.tokens for one in requests], side)
    mask = shown(rng, batch.mask)
    places = rng.choice([None, batch.places, batch.places + rng.choice([1, 5, 100])])
    embedded = rng.random() < 0.25
    expect: Expect = "answer"
    if kind == "nothing":
        expect = unsaid(requests)
        if embedded and any(asks_end(one.plan) for one in requests):
            expect = "either"
    if embedded and kind != "prompts" and any(asks_ids(one.plan) for one in requests):
        expect = "refusal"
    what = f"whole rows, {side}, {kind}, {'embeddings' if embedded else 'ids'}"
    given: dict[str, Any] = {"input_ids": batch.ids}
    if embedded:
        given = {"inputs_embeds": bench.embedded(batch.ids)}
    if mask is not None:
        given["attention_mask"] = mask
    if places is not None:
        given["position_ids"] = places
    with asking(expect, what), quiet(rng), bench.handle.use(plans, **known):
        if rng.random() < 0.2:
            inner = bench.model.model(**given, output_hidden_states=True)
            found, hidden = bench.model.lm_head(inner.last_hidden_state), inner.hidden_states
        else:
            out = bench.model(**given, output_hidden_states=True)
            found, hidden = out.logits, out.hidden_states
    if places is None:
        places = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    for row, one in enumerate(requests):
        streams = [batch.real(row, stream[row]) for stream in hidden[:-1]]
        logits = batch.real(row, found[row])
        at = batch.real(row, places[row]).tolist()
        bench.check(one, logits, f"{what}, row {row}", streams=streams, places=at)


def across(batch: Padded, requests: list[Request], seen: int, until: int) -> bool:
    """Whether columns hold, for a plan with a condition, tokens of its prompt and tokens behind it."""
    for row, one in enumerate(requests):
        if one.plan is None or one.plan.condition is None:
            continue
        before, after = int(batch.mask[row, :seen].sum()), int(batch.mask[row, :until].sum())
        if before < len(one.prompt) < after:
            return True
    return False


def chunks(bench: Bench, rng: random.Random) -> None:
    """Rows in chunks over a cache, across the ends of their prompts; the cache is rewound, plans change, something else runs
    in between. What was answered before a refusal is right too."""
    requests = bench.requests(rng, rng.randrange(1, 4), rng.randrange(1, 6))
    plans = one_or_many(rng, requests)
    others = [other_plan(bench, rng, one) for one in requests]
    others = others if isinstance(plans, list) else others[:1] * len(requests)
    kind, known = told(rng, requests)
    side = rng.choice(SIDES)
    batch = padded(rng, [one.tokens for one in requests], side)
    hidden = shown(rng, batch.mask)
    width, minds = batch.ids.shape[1], any(asks_end(one.plan) for one in requests)
    conditional = any(one.plan and one.plan.condition for one in requests)
    if kind == "nothing":  # which is refused behind the first chunk, if a plan minds
        for one in requests:
            one.prompt = one.tokens
    story = [f"chunks, {side}, {kind}:"]
    logits = torch.full((len(requests), width, 64), torch.nan, dtype=bench.dtype)
    cache, seen, stopped, changed, disturbed, turns = None, 0, None, None, False, 0
    careful = rng.random() < 0.8  # so that conditions are not refused
    fixed = rng.random() < 0.2  # a static cache, which is not rewound
    if fixed:
        cache = StaticCache(config=bench.plain.config, max_cache_len=width)
    with asking("answer", story[0]), torch.no_grad():
        use = bench.handle.use(plans, **known)
    with use, torch.no_grad():
        while seen < width and turns < 10:
            turns += 1
            act = rng.choice(["on"] * 6 + ["rewind", "change", "interlude"]) if seen else "on"
            if act == "rewind" and not fixed:
                before, seen = seen, rng.randrange(seen)
                cache.crop(seen - before)
            elif act == "change" and kind == "prompts" and changed is None:
                with asking("answer", "a change between chunks"):
                    use.change(others if isinstance(plans, list) else others[0])
                changed = seen
            elif act == "interlude":
                disturbed = True
                interlude(bench, rng)
            changed = None if changed is None else min(changed, seen)
            until = min(seen + rng.randrange(1, 6), width)
            while careful and seen and across(batch, requests, seen, until):
                until -= 1
            story.append(f"{act} {seen}:{until}")
            expect: Expect = "answer"
            if kind == "nothing" and minds:
                expect = "refusal" if seen else unsaid(requests) if until == width else "either"
            elif (kind == "lengths" and any(asks_ids(one.plan) for one in requests)) or (
                conditional and disturbed
            ):
                expect = "either"
            if kind != "nothing" and seen and across(batch, requests, seen, until):
                expect = "refusal"
            mask = {} if hidden is None else {"attention_mask": hidden[:, :until]}
            try:
                with asking(expect, " ".join(story)):
                    out = bench.model(
                        batch.ids[:, seen:until],
                        position_ids=batch.places[:, seen:until],
                        past_key_values=cache,
                        use_cache=True,
                        **mask,
                    )
            except Refused as refused:
                stopped = refused
                break
            cache, logits[:, seen:until], seen = out.past_key_values, out.logits, until
    if stopped is None or kind != "nothing":
        for row, one in enumerate(requests):
            found = batch.real(row, logits[row])[: int(batch.mask[row, :seen].sum())]
            more = {}
            if changed is not None and changed < seen:
                more = {"changes": [(int(batch.mask[row, :changed].sum()), others[row])]}
            if len(found):
                bench.check(one, found, f"{' '.join(story)}, row {row}", **more)
    if stopped is not None:
        raise stopped


def interlude(bench: Bench, rng: random.Random) -> None:
    """Something else runs in the middle of a request."""
    ids = torch.tensor([tokens(rng, 4)])
    plan = bench.plan(rng, ids[0].tolist(), everywhere=True)
    with bench.handle.use(plan):
        if rng.random() < 0.5:
            bench.model(ids)
        else:
            bench.model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)


def packed(bench: Bench, rng: random.Random) -> None:
    """Several sequences a row, told by position ids that start again; a plan for all, a row, or a sequence."""
    rows = rng.choice([1, 1, 2])
    each = [bench.requests(rng, rng.randrange(1, 4), 0) for _ in range(rows)]
    if sum(map(len, each)) == rows:
        each[0] += bench.requests(rng, 1, 0)
    requests = [one for row in each for one in row]
    for one in requests:
        one.tokens = one.prompt + tokens(rng, rng.randrange(5))
    longest = max(sum(len(one.tokens) for one in row) for row in each)
    for row in each:  # rows of equal length, since transformers packs none that are padded
        row[-1].tokens += tokens(rng, longest - sum(len(one.tokens) for one in row))
    given = rng.choice(["all", "row", "sequence"])
    plans: Any = plans_of(requests)
    if given == "all":
        plans = requests[0].plan
        for one in requests:
            one.plan = plans
    elif given == "row":
        plans = [row[0].plan for row in each]
        for row in each:
            for one in row:
                one.plan = row[0].plan
    kind, known = told(rng, requests)
    expect = "answer"
    if kind == "nothing":
        for one in requests:
            one.prompt = one.tokens
        expect = unsaid(requests)
    ids = torch.tensor([[token for one in row for token in one.tokens] for row in each])
    first = rng.choice([0, 0, 3])  # a sequence may go on with a document
    places = torch.tensor(
        [[first + t for one in row for t in range(len(one.tokens))] for row in each]
    )
    embedded = rng.random() < 0.2
    what = f"packed rows of {[len(row) for row in each]}, a plan for {given}, {kind}"
    inputs: dict[str, Any] = {"input_ids": ids}
    if embedded:
        what += ", embeddings"
        inputs = {"inputs_embeds": bench.embedded(ids)}
        if kind != "prompts" and any(asks_ids(one.plan) for one in requests):
            expect = "refusal"
    with asking(expect, what), quiet(rng), bench.handle.use(plans, **known):
        out = bench.model(**inputs, position_ids=places, use_cache=False, output_hidden_states=True)
    for number, row in enumerate(each):
        at = 0
        for one in row:
            here = slice(at, at := at + len(one.tokens))
            streams = [stream[number, here] for stream in out.hidden_states[:-1]]
            more = {"places": places[number, here].tolist()}
            bench.check(one, out.logits[number, here], what, streams=streams, **more)


def other_plan(bench: Bench, rng: random.Random, one: Request) -> Plan | None:
    """One that may take the place of a request's in the middle of it: its condition stays."""
    other, before = bench.plan(rng, one.prompt), one.plan and one.plan.condition
    if other is None:
        return one.plan if before else None
    return replace(other, condition=before)


def loop(bench: Bench, rng: random.Random) -> None:
    """``handle.generating``, in chunks, with a cache that is rewound and plans that change."""
    requests = bench.requests(rng, rng.randrange(1, 4), 5)
    plans = one_or_many(rng, requests)
    side = rng.choice(["left", *SIDES])
    batch = padded(rng, [one.prompt for one in requests], side)
    width, more = batch.ids.shape[1], 5
    ids = torch.cat([batch.ids, torch.tensor([one.tokens[-more:] for one in requests])], 1)
    mask = torch.cat([batch.mask, torch.ones_like(ids[:, :more])], 1)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    conditional = any(one.plan and one.plan.condition for one in requests)
    logits = torch.full((*ids.shape, 64), torch.nan, dtype=bench.dtype)
    story, changed, cache, seen = [f"loop, {side}"], None, None, 0
    others = [other_plan(bench, rng, one) for one in requests]
    single = not isinstance(plans, list)
    total, turns, disturbed, careful = ids.shape[1], 0, False, rng.random() < 0.8
    with asking("answer", "loop"):
        use = bench.handle.use(plans)
    with torch.no_grad(), use, bench.handle.generating(batch.ids, batch.mask) as steps:
        while seen < total and turns < 14:
            turns += 1
            back = rng.random() < 0.2 and seen > 0
            if back:
                before, seen = seen, rng.randrange(seen)
                cache.crop(seen - before)
            if changed is None and rng.random() < 0.1:
                with asking("either", "a change in a loop"):
                    use.change(others[0] if single else others)
                changed = seen
                story.append(f"change at {seen}")
            changed = None if changed is None else min(changed, seen)
            if seen and rng.random() < 0.1:
                disturbed = True
                interlude(bench, rng)
                story.append("interlude")
            until = min(seen + rng.randrange(1, 6), total)
            if careful and 0 < seen < width:
                until = min(until, width)
            expect: Expect = "either" if conditional and disturbed else "answer"
            expect = "refusal" if conditional and 0 < seen < width < until else expect
            story.append(f"{seen}:{until}")
            with asking(expect, " ".join(story)):
                steps.step(until - seen, seen) if back else steps.step(until - seen)
                out = bench.model(
                    ids[:, seen:until],
                    attention_mask=mask[:, :until],
                    position_ids=places[:, seen:until],
                    past_key_values=cache,
                    use_cache=True,
                )
            cache, logits[:, seen:until], seen = out.past_key_values, out.logits, until
    for row, one in enumerate(requests):
        real = mask[row, :seen].bool()
        found = logits[row, :seen][real]
        more_of = {}
        if changed is not None:
            other = others[0] if single else others[row]
            more_of = {"changes": [(int(mask[row, :changed].sum()), other)]}
        bench.check(one, found, f"{' '.join(story)}, row {row}", **more_of)
