"""How a request of ``generate_batch`` is sampled: what may be asked for, checked before anything runs.

max_new_tokens   1 to what the model has positions for, behind the prompt
eos_token_id     a token, or a list of them; -1 for none
do_sample        true or false
temperature      0 or more          top_k   0 or more; 0: all
top_p            above 0, up to 1   seed    0 to 2^63 - 1
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from steerfast.io.strict import LARGEST
from steerfast.plans.fields import number, whole, wholes

MAX_NEW_TOKENS = 128  # of a request that does not say


def checked(given: Mapping[str, Any], who: str, most_new: int, vocabulary: int) -> dict[str, Any]:
    """What was asked for, as plain values; what is None was not.

    who: the request, as errors name it. most_new: tokens that may follow its prompt. TypeError or ValueError for
    anything that is not in the table above.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"the sampling of {who} is a {type(given).__name__}; wanted a dict")
    unknown = sorted(str(name) for name in given if name not in _READ)
    if unknown:
        raise ValueError(f"{who} asks for {', '.join(unknown)}; known: {', '.join(_READ)}")
    values = {
        name: _READ[name](f"{name} of {who}", value, vocabulary)
        for name, value in given.items()
        if value is not None
    }
    new = values.get("max_new_tokens")
    if new is not None and new > most_new:
        raise ValueError(
            f"{who} has max_new_tokens {new}, but behind its prompt this model has positions for {most_new}"
        )
    if values.get("do_sample") and values.get("temperature") == 0:
        raise ValueError(
            f"{who} samples at temperature 0; leave do_sample out for the likeliest token"
        )
    return values


def _between(least: int, most: int = LARGEST) -> Callable[[str, object, int], int]:
    def read(name: str, value: object, vocabulary: int) -> int:
        found = whole(name, value)
        if not least <= found <= most:
            raise ValueError(f"{name} is a whole number from {least} to {most}, got {found}")
        return found

    return read


def _temperature(name: str, value: object, vocabulary: int) -> float:
    found = number(name, value)
    if found < 0:
        raise ValueError(f"{name} is a number from 0, got {found}")
    return found


def _share(name: str, value: object, vocabulary: int) -> float:
    found = number(name, value)
    if not 0 < found <= 1:
        raise ValueError(f"{name} is a number above 0, up to 1, got {found}")
    return found


def _tokens(name: str, value: object, vocabulary: int) -> int | list[int]:
    tokens = wholes(name, value)
    if any(not -1 <= token < vocabulary for token in tokens):
        raise ValueError(
            f"{name} is a token from 0 to {vocabulary - 1}, a list of them, or -1 for none; got {value!r}"
        )
    return tokens[0] if len(tokens) == 1 else list(tokens)


def _truth(name: str, value: object, vocabulary: int) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} is true or false, got {value!r}")
    return value


_READ: dict[str, Callable[[str, object, int], Any]] = {
    "max_new_tokens": _between(1),
    "eos_token_id": _tokens,
    "do_sample": _truth,
    "temperature": _temperature,
    "top_k": _between(0),
    "top_p": _share,
    "seed": _between(0),
}
