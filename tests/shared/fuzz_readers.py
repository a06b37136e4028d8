"""A fuzz of whatever reads what others wrote: plans, vectors, contrast sets, questions, presets, a server's requests.

Valid inputs are changed byte by byte and value by value: other types, keys given twice, booleans, huge integers, NaN,
lone surrogates, nesting around the interpreter's limit, names that lead out of their folder. A reader may take an input,
or refuse it with its own error; nothing else may arise, in little time and memory.

    python tests/shared/fuzz_readers.py --seconds 600 --seed 0
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import struct
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from steerfast import SteeringVector, contrast, load_plan, load_vector, save_vector
from steerfast.experiments import config, questions
from steerfast.io.plans import plan_from_json
from steerfast.io.vectors import vector_to_json
from steerfast.serving.arrival import arrived
from steerfast.serving.catalogue import Catalogue
from steerfast.serving.reader import PlanReader, read_vector
from steerfast.serving.settings import Settings
from steerfast.serving.wire import to_wire
from steerfast.table.packing import Cost

D, LAYERS, PROMPT = 4, 3, [5, 7, 8, 6]
MOST_BYTES = 65536  # of an input: what a server lets in
SLOW = 2.0  # seconds of this thread, for an input of a few KB: a thousand times what one takes


class Raw(str):
    """Text that stands in JSON as it is."""


class Pairs(list):
    """An object as (key, value)s, of which keys may be equal."""


def dump(value: Any) -> str:
    """JSON of a tree with Raw and Pairs in it."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        value = Pairs(value.items())
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {dump(each)}" for key, each in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dump, value)) + "]"
    return json.dumps(value)


NUMBERS = [
    "-1",
    "0",
    "1.5",
    "1e999",
    "-1e400",
    "NaN",
    "Infinity",
    "-0",
    "1e39",
    "1e-320",
    "01",
    "0x1",
]
HUGE = [str(2**63 - 1), str(2**63), str(-(2**63)), "9" * 400, "9" * 5000, "1" + "0" * 25, "1e308"]
NAMES = [
    "",
    " ",
    ".",
    "..",
    "../joy",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "joy\0",
    "C:\\joy",
    "~",
]
TEXTS = ["\ud800", "\udfff\ud800", "é", "\u202e", "0", "true", "null", "all", "joy", "x" * 3000]
LISTS = [[], {}, [[]], [{}], {"": 0}, {"0": "AAAA"}, [0], [0, 1], [[0, 1]], {"first": 3}, [None]]


NEAR = [
    0,
    1,
    2,
    3,
    7,
    -1,
    -3,
    2**40,
    0.5,
    -2.0,
    1e30,
    3e-39,
    "joy",
    "all",
    "any",
    "prompt",
    "add",
    "clamp",
    "ablate",
]
NEAR += [
    "slerp",
    "resid_mid",
    "resid_pre",
    "unit",
    "sigmoid",
    "shrink",
    "generated",
    "after_prompt",
    [1],
    [0, 2],
    [-1, 4],
]


def _value(draw: random.Random) -> Any:
    kind = draw.randrange(8)
    if kind < 2:
        return Raw(draw.choice(NUMBERS))
    if kind == 2:
        return Raw(draw.choice(HUGE))
    if kind == 3:
        return draw.choice([True, False, None])
    if kind == 4:
        return draw.choice([*NAMES, *TEXTS])
    if kind == 5:
        return copy.deepcopy(draw.choice(LISTS))
    if kind == 6:
        deep = draw.choice([3, 50, 70, *range(900, 1010), 3000, 30_000])
        opening, closing = draw.choice([("[", "]"), ('{"a":', "}")])
        return Raw(opening * deep + "0" + closing * deep * draw.randrange(2))
    many = draw.choice([50, 3000])
    return draw.choice(
        [
            Pairs((f"k{at}", 0) for at in range(many)),
            Pairs((f"k{at % (many - 1)}", 0) for at in range(many)),
            Raw("[" + ", ".join(["0"] * many) + "]"),
            Raw("[" + ", ".join(["[0, 1.0]"] * many) + "]"),
        ]
    )


def _spots(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key or place) of every value."""
    found, pending = [], [tree]
    while pending:
        one = pending.pop()
        keys = one.keys() if isinstance(one, dict) else range(len(one))
        for key in list(keys):
            found.append((one, key))
            if isinstance(one[key], (dict, list)) and not isinstance(one[key], Pairs):
                pending.append(one[key])
    return found


def changed_tree(draw: random.Random, tree: Any) -> str:
    """JSON text of a tree of which one to three values are others, gone, doubled, moved, or under a key given twice."""
    tree = {"": json.loads(json.dumps(tree))}
    for _ in range(draw.randrange(1, 4)):
        where, key = draw.choice(_spots(tree))
        kind, value = draw.randrange(6), _value(draw)
        near = [each for each in NEAR if type(each) is type(where[key])]
        if near and draw.random() < 0.5:
            where[key] = copy.deepcopy(draw.choice(near))
        elif kind < 3:
            where[key] = value
        elif kind == 3 and where is not tree:
            del where[key]
        elif kind == 4 and isinstance(where[key], dict):
            twice = where[key]
            where[key] = Pairs(
                [*twice.items(), *list(twice.items())[:1], ("k", value)][draw.randrange(2) :]
            )
        else:
            other, place = draw.choice(_spots(tree))
            other[place] = json.loads(json.dumps(where[key])) if not _raw(where[key]) else value
    return dump(tree[""])


def _raw(value: Any) -> bool:
    """Whether JSON's own dumper would not write it as it is meant."""
    if isinstance(value, (Raw, Pairs)):
        return True
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(map(_raw, inner))


LETTERS = b'0123456789-+.eE"{}[]:,truefalsn \\u\xff\x00=#/\xed\xa0\x80'


def changed_bytes(draw: random.Random, data: bytes) -> bytes:
    """Some bytes of it others, gone, or there twice."""
    text = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        if not text:
            break
        at, kind = draw.randrange(len(text)), draw.randrange(5)
        if kind == 0:
            text[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del text[at : at + draw.choice((1, 2, 9, 200))]
        elif kind == 2:
            piece = text[at : at + draw.choice((1, 8, 60))]
            text[at:at] = piece * draw.choice((1, 2, 50))
        else:
            text[at : at + draw.randrange(2)] = bytes(draw.choices(LETTERS, k=draw.choice((1, 3))))
    return bytes(text)


class Reader(NamedTuple):
    """read: what takes bytes. change: one more input. errors: what it may raise; of subclasses none."""

    name: str
    read: Callable[[bytes], object]
    change: Callable[[random.Random], bytes]
    errors: tuple[type[Exception], ...] = (ValueError,)


def _vector(seed: int) -> SteeringVector:
    rng = torch.Generator().manual_seed(seed)
    return SteeringVector(
        f"v{seed}",
        {at: torch.randn(D, generator=rng) for at in range(LAYERS)},
        dict.fromkeys(range(LAYERS), 2.0),
    )


def _plans() -> list[Any]:
    """Plans that use everything there is."""
    inline, joy = vector_to_json(_vector(1)), "joy"
    rows = vector_to_json(SteeringVector("rows", {1: torch.eye(D)}))
    selects = ["generated", {"positions": [-2, 9]}, {"after_sequence": [7, 8]}, {"first": 3}]
    return [
        {"schema": "steerfast.plan/1", "terms": [{"vector": joy, "layers": [1]}], "finish": "none"},
        {
            "terms": [
                {"vector": inline, "coefficient": 0.5, "layers": [0, 1], "scale": "stream"},
                {
                    "vector": joy,
                    "operator": "map",
                    "read": inline,
                    "bias": 0.5,
                    "site": "resid_mid",
                },
                {
                    "vector": joy,
                    "operator": "feature_clamp",
                    "read": joy,
                    "target": 2.0,
                    "threshold": 1,
                },
                {"vector": joy, "operator": "rotate_to", "second": inline, "angle": 0.5},
                {
                    "vector": joy,
                    "gate": {"kind": "hard", "key": inline, "bias": 0.25},
                    "scale": "equal",
                },
                {"vector": joy, "gate": {"kind": "cosine", "key": joy, "threshold": 0.25}},
            ],
            "finish": "preserve",
            "schedule": [[-2, 0.5], [3, 1.5]],
            "condition": {"tests": [{"kind": "cosine", "key": joy, "layer": 0}], "require": "any"},
        },
        {
            "terms": [
                {"vector": rows, "select": {"first": 3}},
                *({"vector": joy, "select": one} for one in selects),
            ]
        },
        {
            "terms": [
                {"vector": joy, "coefficient": 1 + at, "select": {"after_sequence": [at]}}
                for at in range(5, 10)
            ]
        },
    ]


PAIRS = [
    {"prompt": "a", "positive": " b", "negative": " c", "split": split}
    for split in ("train", "held_out")
]
RECORD = {
    "question": "Is it?",
    "answer_matching_behavior": " (A)",
    "answer_not_matching_behavior": " (B)",
}
PRESET = """model = "m"
dtype = "float32"
notes = "n"
[sparsity]
directions = ["sentiment"]
layer = 1
coefficients = [1, 0.5]
shares = [0.5]
tax_tokens = 10
[behaviours]
behaviours = ["myopic"]
train = 2
validation = 3
layers = [1, 2]
coefficients = [0.5]
individual_layers = [1]
simultaneous = {myopic = 1}
global_coefficients = [0.1, 1.0, 0.1]
pair_coefficient = 1.0
chosen.myopic.1 = [-1.0, 1.0]
"""


def _preset(draw: random.Random) -> bytes:
    lines = PRESET.splitlines()
    for _ in range(draw.randrange(3)):
        at = draw.randrange(len(lines))
        key = lines[at].split(" = ")[0]
        value = _value(draw)
        if draw.random() < 0.2:
            lines.insert(
                at, draw.choice([lines[at], "[" * 2000, "a" + ".a" * 3000 + " = 1", "[[sparsity]]"])
            )
        else:
            lines[at] = f"{key} = {dump(value)}"
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    return changed_bytes(draw, text) if draw.random() < 0.4 else text


def _vector_file(draw: random.Random, valid: bytes) -> bytes:
    if draw.random() < 0.5:
        return changed_bytes(draw, valid)
    length = struct.unpack("<Q", valid[:8])[0]
    header = json.loads(valid[8 : 8 + length])
    if draw.random() < 0.6:
        about = header["__metadata__"]["steerfast"]
        header["__metadata__"]["steerfast"] = changed_tree(draw, json.loads(about))
        text = json.dumps(header).encode()
    else:
        text = changed_tree(draw, header).encode("utf-8", "surrogatepass")
    kinds = ["F32", "F16", "BF16", "F64", "I32", "I64", "U8", "BOOL", "F8_E4M3", "C64", "F4", "x"]
    text = text.replace(b'"F32"', json.dumps(draw.choice(kinds)).encode(), draw.randrange(2))
    says = draw.choice([len(text)] * 8 + [0, len(text) + 1, 2**40, 2**63])
    return struct.pack("<Q", says) + text + valid[8 + length :]


def every(folder: Path) -> list[Reader]:
    """All readers, with what they need in a folder."""
    import fuzz_formats  # which takes from here how things are changed

    vectors = {"joy": _vector(0)}
    save_vector(vectors["joy"], folder / "joy.safetensors")
    save_vector(_vector(2), folder.parent / "secret.safetensors")
    valid_file = (folder / "joy.safetensors").read_bytes()
    catalogue = Catalogue()
    catalogue.put("joy", vectors["joy"])
    server = PlanReader(Settings(inline=True), LAYERS, D, catalogue=catalogue)
    plans, inline = _plans(), vector_to_json(_vector(1))

    def through_file(name: str, load: Callable[[Path], object]) -> Callable[[bytes], object]:
        def read(data: bytes) -> object:
            (folder / name).write_bytes(data)
            return load(folder / name)

        return read

    def request(data: bytes) -> object:
        prepared = server.read(data.decode("utf-8", "surrogatepass"))
        if prepared is not None:
            arrived(to_wire(prepared, len(PROMPT), PROMPT), LAYERS, D, Cost(512, 4096, 1024))
        return prepared

    def trees(*valid: Any) -> Callable[[random.Random], bytes]:
        def change(draw: random.Random) -> bytes:
            tree = draw.choice(valid)
            if draw.random() < 0.3:
                return changed_bytes(draw, json.dumps(tree).encode())
            return changed_tree(draw, tree).encode("utf-8", "surrogatepass")

        return change

    def lines(draw: random.Random) -> bytes:
        return b"\n".join([trees(RECORD)(draw), json.dumps(RECORD).encode()])

    def text(draw: random.Random) -> bytes:
        """A request's field is text already."""
        return trees(*plans)(draw).decode("utf-8", "replace").encode()

    return [
        Reader("plan", lambda data: plan_from_json(data, vectors), trees(*plans)),
        Reader(
            "plan file",
            through_file("p.json", load_plan),
            trees(*plans),
            (ValueError, FileNotFoundError),
        ),
        Reader("request", request, text),
        Reader("vector", lambda data: read_vector(data, "v"), trees(inline)),
        Reader(
            "vector file",
            through_file("v.safetensors", load_vector),
            lambda draw: _vector_file(draw, valid_file),
        ),
        Reader(
            "contrast set",
            through_file("c.json", contrast.load),
            trees({"name": "n", "pairs": PAIRS}),
        ),
        Reader(
            "questions",
            through_file("q.json", lambda at: questions.load(at.parent, "q")),
            trees([RECORD]),
        ),
        Reader(
            "question lines",
            through_file("l.jsonl", lambda at: questions.load(at.parent, "l")),
            lines,
        ),
        Reader("preset", through_file("t.toml", config.load_preset), _preset),
        *fuzz_formats.every(folder),
    ]


class Outcome(NamedTuple):
    """Of one input: read, refused, or what was wrong."""

    reader: str
    data: bytes
    refused: bool
    wrong: str | None
    seconds: float


def outcomes(seed: int, folder: Path) -> Iterator[Outcome]:
    """One input after another, for ever; the same for the same seed."""
    draw, readers = random.Random(seed), every(folder)
    while True:
        one = draw.choice(readers)
        data = one.change(draw)
        if len(data) > MOST_BYTES:
            continue
        begun, wrong, refused = time.thread_time(), None, False
        try:
            one.read(data)
        except Exception as error:
            refused = type(error) in one.errors
            if not refused:
                wrong = "".join(traceback.format_exception(error)[-3:])[-600:]
        yield Outcome(one.name, data, refused, wrong, time.thread_time() - begun)


def readers(seconds: float, seed: int = 0, most: int | None = None) -> dict[str, Any]:
    """Inputs for so many seconds (or ``most`` of them); what was read and refused, and what was found wrong, by reader."""
    read, refused = Counter[str](), Counter[str]()
    found: dict[str, list[str]] = {}
    slowest, begun, count = 0.0, time.monotonic(), 0
    peaks: list[int] = []  # of memory, every 1000 inputs
    with tempfile.TemporaryDirectory() as root:
        (folder := Path(root) / "in").mkdir()
        for one in outcomes(seed, folder):
            count += 1
            if count % 1000 == 1:
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
            (refused if one.refused else read).update([one.reader])
            wrong = one.wrong or (f"slow: {one.seconds:.1f} s" if one.seconds > SLOW else None)
            if wrong is not None and len(found.setdefault(one.reader, [])) < 5:
                found[one.reader].append(f"{one.data[:300]!r} ({len(one.data)} bytes): {wrong}")
            slowest = max(slowest, one.seconds)
            if count == most or time.monotonic() - begun > seconds:
                break
    return {
        "inputs": count,
        "seed": seed,
        "read": dict(sorted(read.items())),
        "refused": dict(sorted(refused.items())),
        "slowest_ms": round(1e3 * slowest, 1),
        "grown_mb_in_second_half": (peaks[-1] - peaks[len(peaks) // 2]) // 1024,
        "found": found,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(readers(options.seconds, options.seed), indent=1))
