"""The OpenAI-compatible server: plans by name and by value, bad ones refused, and two hundred clients at once."""

from __future__ import annotations

import asyncio
import json
import random

import httpx
import pytest
from engines import JOY, ODD, PLANS, prompt
from servers import server

import steerfast as sf
from steerfast.io.plans import plan_to_json
from steerfast.io.vectors import vector_to_json
from steerfast.serving import openai_args

TOKEN = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    sf.save_vector(JOY, folder / "joy.safetensors")
    sf.save_vector(ODD, folder / "odd.safetensors")
    return folder


@pytest.fixture(scope="module")
def up(folder, vectors, tmp_path_factory):
    environment = {
        "VLLM_PLUGINS": "steerfast,steerfast_http",
        "STEERFAST_VECTORS": str(vectors),
        "STEERFAST_ADMIN_TOKEN": "secret",
        "STEERFAST_INLINE": "0",
        "STEERFAST_SLOTS": "12",  # fewer than plans at once: some wait
        "STEERFAST_DOSE_REFUSE": "50",
        # Freed memory goes back at once, and oneDNN keeps no kernel for every batch size it has seen: so what is resident
        # is what is used.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "4",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": "65536",
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }
    # So few blocks that the first requests touch them all: the cache's own memory counts before any comparison.
    log = tmp_path_factory.mktemp("server") / "log"
    with server(folder, log, environment, "--num-gpu-blocks-override=256") as here:
        yield here


def body(ids, plan=None, count=12, **more):
    """A completion request; vectors go by name."""
    fixed = {
        "model": "tiny",
        "prompt": list(ids),
        "max_tokens": count,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    if isinstance(plan, sf.Plan):
        fixed |= openai_args(plan, inline=False)
    elif plan is not None:
        fixed |= openai_args(plan)
    return fixed | more


def answered(response) -> list[int]:
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["token_ids"]


def test_health(up):
    health = up.health()
    assert health["armed"]
    assert (health["workers"], health["slots"], health["slots_in_use"]) == (1, 12, 0)


def test_completions(up, oracle):
    ids = prompt()
    for name, plan in PLANS.items():
        assert answered(up.post("/v1/completions", json=body(ids, plan))) == oracle.tokens(
            ids, plan
        ), name


def test_chat_with_the_openai_client(up, oracle):
    from openai import OpenAI

    client = OpenAI(base_url=f"{up.url}/v1", api_key="-")
    for plan in (None, PLANS["plus"]):
        extra = {"return_token_ids": True, "ignore_eos": True}
        extra |= {} if plan is None else openai_args(plan, inline=False)
        answer = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "How do you do?"}],
            max_tokens=12,
            temperature=0,
            extra_body=extra,
        )
        ids = answer.prompt_token_ids
        assert list(answer.choices[0].token_ids) == oracle.tokens(ids, plan)


def test_streaming(up, oracle):
    ids, plan = prompt(), PLANS["everywhere"]
    found = []
    with httpx.stream(
        "POST", f"{up.url}/v1/completions", json=body(ids, plan, stream=True), timeout=600
    ) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                found += json.loads(line[6:])["choices"][0].get("token_ids") or []
    assert found == oracle.tokens(ids, plan)


JOYFUL = '{"terms": [{"vector": "joy", "layers": [1], "coefficient": 3}]}'
BAD = {
    "no JSON": ("{terms", "JSON"),
    "not a plan": ("[1, 2]", "name"),
    "an unknown plan": ("polite", "polite"),
    "a path": ("../joy", "name"),
    "an unknown vector": ('{"terms": [{"vector": "anger"}]}', "anger"),
    "a vector's path": ('{"terms": [{"vector": "/etc/passwd"}]}', "name"),
    "a vector by value": (
        json.dumps({"terms": [{"vector": vector_to_json(JOY)}]}),
        "STEERFAST_INLINE",
    ),
    "a misspelt key": (JOYFUL.replace("coefficient", "coeficient"), "coeficient"),
    "a layer too many": (JOYFUL.replace("[1]", "[9]"), "layer"),
    "not a number": (JOYFUL.replace(": 3", ": NaN"), "NaN, which is no number of JSON"),
    "a wrong type": (JOYFUL.replace("[1]", '"one"'), "layers"),
    "an unknown operator": (
        JOYFUL.replace('"layers"', '"operator": "explode", "layers"'),
        "operator",
    ),
    "too much": (JOYFUL.replace(": 3", ": 3e4"), "coefficient"),
    "a condition": (
        JOYFUL[:-1] + ', "condition": {"tests": [{"kind": "cosine", "key": "joy", "layer": 1}]}}',
        "condition",
    ),
    "too deep": ('{"terms": ' + "[" * 3000 + "]" * 3000 + "}", "deep"),
    "too many terms": (json.dumps({"terms": 40 * [{"vector": "joy", "layers": [1]}]}), "terms"),
    "a sequence that is not there": (
        JOYFUL[:-3] + ', "select": {"after_sequence": [499, 498]}}]}',
        "sequence",
    ),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_plan_is_refused(up, name, stream):
    text, word = BAD[name]
    response = up.post("/v1/completions", json=body(prompt(), text, stream=stream))
    if name == "a sequence that is not there" and stream:
        # Known once the prompt is: by then the stream has begun, and carries the error.
        assert '"code":400' in response.text.replace(" ", "")
        return
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "vllm_xargs.steerfast"
    assert word in error["message"]


@pytest.mark.parametrize(
    "extra",
    [
        {"vllm_xargs": {"steerfast.wire": "{}"}},
        {"vllm_xargs": {"Steerfast": JOYFUL}},
        {"vllm_xargs": {"steerfast-plan": JOYFUL}},
        {"vllm_xargs": {"steerfast": 3}},
        {"vllm_xargs": {"steerfast": JOYFUL}, "use_beam_search": True, "n": 2},
    ],
)
def test_fields_that_would_be_ignored_are_refused(up, extra):
    response = up.post("/v1/completions", json=body(prompt()) | extra)
    assert response.status_code == 400
    assert "steer" in response.json()["error"]["message"]


def test_register_and_remove(up, oracle, vectors):
    ids = prompt()
    plan = sf.steer(sf.SteeringVector("new", {2: ODD.at(2)}), 5.0)
    named = '{"terms": [{"vector": "new", "coefficient": 5}]}'
    assert up.post("/v1/completions", json=body(ids, named)).status_code == 400
    vector = vector_to_json(sf.SteeringVector("any", {2: ODD.at(2)}))
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert up.post("/steerfast/vectors/new", json=vector, headers=headers).status_code == 401
    assert up.post("/steerfast/vectors/new", json=vector, headers=TOKEN).status_code == 200
    assert answered(up.post("/v1/completions", json=body(ids, named))) == oracle.tokens(ids, plan)
    assert up.post("/steerfast/plans/often", content=named, headers=TOKEN).status_code == 200
    assert answered(up.post("/v1/completions", json=body(ids, "often"))) == oracle.tokens(ids, plan)
    assert set(up.get("/steerfast/vectors", headers=TOKEN).json()) == {"joy", "odd", "new"}
    assert set(up.get("/steerfast/plans", headers=TOKEN).json()) == {"often"}
    assert {path.name for path in vectors.iterdir()} == {
        *("joy.safetensors", "odd.safetensors", "new.safetensors"),
        "often.json",
    }
    for bad in ("..%2Fx", ".hidden", "a" * 65):
        assert up.post(f"/steerfast/vectors/{bad}", json=vector, headers=TOKEN).status_code in (
            400,
            404,
        )
    small = vector_to_json(sf.SteeringVector("small", {0: ODD.at(0)[:8]}))
    assert up.post("/steerfast/vectors/small", json=small, headers=TOKEN).status_code == 400
    for path in ("vectors/new", "plans/often"):
        assert httpx.delete(f"{up.url}/steerfast/{path}", headers=TOKEN).status_code == 200
        assert httpx.delete(f"{up.url}/steerfast/{path}", headers=TOKEN).status_code == 404
    assert up.post("/v1/completions", json=body(ids, named)).status_code == 400


def test_metrics(up):
    up.health()
    text = up.get("/metrics").text
    for name in (
        "steered_requests_total",
        "refused_requests_total",
        "slots_in_use",
        "route_seconds",
    ):
        assert f"steerfast:{name}" in text


async def wave(up, work) -> None:
    """Two hundred clients: most want an answer, some send nonsense, leave a stream, or hang up."""
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=up.url, timeout=3000, limits=limits) as client:

        async def one(number):
            kind, ids, plan, wanted = work[number]
            if kind == "bad":
                text, _ = BAD[plan]
                response = await client.post("/v1/completions", json=body(ids, text))
                assert response.status_code == 400, plan
                assert response.json()["error"]["param"] == "vllm_xargs.steerfast"
            elif kind == "leaves":
                request = body(ids, plan, 300, stream=True)
                async with client.stream("POST", "/v1/completions", json=request) as response:
                    async for line in response.aiter_lines():
                        if line:
                            break
            elif kind == "hangs up":
                asking = client.post("/v1/completions", json=body(ids, plan, 300))
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asking, 0.3)
            else:
                response = await client.post("/v1/completions", json=body(ids, plan))
                assert answered(response) == wanted, plan

        await asyncio.gather(*(one(number) for number in range(len(work))))


def test_two_hundred_clients(up, oracle):
    chance = random.Random(5)
    prompts = [prompt(length, seed) for seed, length in enumerate((9, 33, 64, 100, 140))]
    plans = [*PLANS.values()]
    plans += [sf.steer(JOY, chance.uniform(-4, 4), layers=[chance.randrange(4)]) for _ in range(20)]
    for plan in plans:
        if plan is not None:
            plan_to_json(plan)
    for ids in prompts:
        oracle.learn(ids, plans)
    work = []
    for number in range(200):
        kind = chance.choices(("asks", "bad", "leaves", "hangs up"), (14, 3, 2, 1))[0]
        ids = chance.choice(prompts)
        plan = plans[(number * 7 + len(ids)) % len(plans)]
        fits = [name for name in BAD if name != "too deep"]
        if kind == "bad":
            work.append((kind, ids, chance.choice(fits), None))
        else:
            wanted = oracle.tokens(ids, plan) if kind == "asks" else None
            work.append((kind, ids, plan, wanted))
    memory = []
    for _ in range(4):
        asyncio.run(wave(up, work))
        for _ in range(3000):
            health = up.health()
            if health["slots_in_use"] == health["requests"] == 0:
                break
            asyncio.run(asyncio.sleep(0.2))
        assert (health["slots_in_use"], health["requests"]) == (0, 0)
        memory.append(up.memory())
    assert up.get("/health").status_code == 200
    # The first waves fill caches; after them nothing may grow with the number of requests.
    assert memory[-1] - memory[-3] < 8 * 2**20, [one >> 20 for one in memory]
    ids = prompt()
    assert answered(up.post("/v1/completions", json=body(ids))) == oracle.tokens(ids, None)
