"""Requests that strangers send to do harm: each as large as a server lets in, or one step beyond a limit."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from steerfast.serving.settings import Settings


def plans(settings: Settings, layers: int, prompt: list[int], vector: str = "joy") -> Iterator[str]:
    """Texts of a request's field, no two alike, for ever: the kinds in turn. ``vector``: a registered one's name."""
    draw = random.Random(0)
    most, tokens = settings.max_terms, sorted(set(prompt))

    def after(count: int, **fields: Any) -> list[dict[str, Any]]:
        chosen = draw.sample(tokens, min(count, len(tokens)))
        return [term(select={"after_sequence": [token]}, **fields) for token in chosen]

    def term(**fields: Any) -> dict[str, Any]:
        return {"vector": vector, "coefficient": draw.uniform(-1, 1), **fields}

    def ranges(count: int) -> list[dict[str, Any]]:
        return [term(select={"positions": [at + 1, -at - 2]}) for at in range(count)]

    def padded(text: str, size: int) -> str:
        return text + " " * (size - len(text.encode()))

    def nested(depth: int) -> str:
        return f'{{"terms": {"[" * depth}{draw.random()}{"]" * depth}}}'

    kinds = [
        lambda: {"terms": after(4)},
        lambda: {"terms": after(9)},  # 2^9 combinations
        lambda: {"terms": after(10)},  # the most that there may be
        lambda: {"terms": after(11)},  # one more
        lambda: {"terms": after(8, operator="ablate")},
        lambda: {"terms": ranges(30)},
        lambda: {"terms": ranges(31) + after(1)},
        lambda: {"terms": [term(scale="equal") for _ in range(most)]},
        lambda: {"terms": [term() for _ in range(most + 1)]},
        lambda: {
            "terms": [{"vector": vector, "bias": draw.random()}] + [{"vector": vector}] * 2500
        },
        lambda: {"terms": [term(operator="clamp", target=draw.random()) for _ in range(16)]},
        lambda: {"terms": [term(operator="clamp", target=draw.random()) for _ in range(17)]},
        lambda: {"terms": [term(layers=[layers])]},
        lambda: {"terms": [term(coefficient=1e38)]},
        lambda: {"terms": [term()], "schedule": [[at, draw.random()] for at in range(256)]},
        lambda: {"terms": [term()], "schedule": [[at, draw.random()] for at in range(257)]},
        lambda: {"terms": [term(layers=[0] * 9000)]},
        lambda: {"terms": [term(layers=[0], select={"after_sequence": tokens[:1] * 15_000})]},
        lambda: {"terms": [term(vector="x" * 60_000)]},
        lambda: nested(60),
        lambda: nested(25_000),
        lambda: (
            "{" + ", ".join(f'"k{draw.random()}": 0' for _ in range(2000)) + ', "k": 0, "k": 1}'
        ),
        lambda: padded(json.dumps({"terms": [term()]}), settings.max_plan_bytes),
        lambda: padded(json.dumps({"terms": [term()]}), settings.max_plan_bytes + 1),
        lambda: f"no-such-plan-{draw.random()}",
    ]
    while True:
        for kind in kinds:
            made = kind()
            yield made if isinstance(made, str) else json.dumps(made)
