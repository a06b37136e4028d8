"""The catalogue keeps what names mean, alone or with others that share its folder, and no name leads anywhere else."""

from __future__ import annotations

import json
import logging
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

import steerfast as sf
from steerfast.io.plans import plan_to_json, save_plan
from steerfast.io.vectors import save_vector, vector_to_json
from steerfast.plans.plan import Plan
from steerfast.plans.vector import SteeringVector
from steerfast.serving import catalogue as module
from steerfast.serving.catalogue import Catalogue, valid_name
from steerfast.serving.reader import PlanReader, read_vector
from steerfast.serving.settings import Settings

GOOD = ["a", "7", "A.b-c_9", "a..b", "joy.safetensors", 64 * "x"]
BAD = ["", ".", "..", ".a", "-a", "_a", "a/b", "/a", "../a", "a\\b", "a b", "a\n", "a\0", "é"]
BAD += [65 * "x", "\ud800", None, 5, b"a", ["a"]]


def vector(value, size=8):
    return SteeringVector("v", {0: torch.full((size,), float(value))}, {0: 2.0})


def plan(value):
    return sf.steer(vector(value), 0.5)


ITEMS = {SteeringVector: vector, Plan: plan}


def held(catalogue, kind):
    return catalogue.vectors() if kind is SteeringVector else catalogue.plans()


def get(catalogue, kind, name):
    return catalogue.vector(name) if kind is SteeringVector else catalogue.plan(name)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.mark.parametrize("name", GOOD)
def test_a_name_is_itself(name):
    assert valid_name(name) == name


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_what_is_no_name_is_refused_before_it_is_a_path(name, folder):
    (folder.parent / "a.json").write_text(plan_to_json(plan(1)))
    save_vector(vector(1), folder.parent / "a.safetensors")
    before, catalogue = files(folder.parent), Catalogue(str(folder))
    calls = [catalogue.vector, catalogue.plan]
    calls += [lambda name, kind=kind: catalogue.put(name, ITEMS[kind](1)) for kind in ITEMS]
    calls += [lambda name, kind=kind: catalogue.remove(kind, name) for kind in ITEMS]
    for call in [valid_name, *calls]:
        with pytest.raises(ValueError, match="a name is 1 to 64 letters"):
            call(name)
    assert files(folder.parent) == before


@pytest.mark.parametrize("kind", ITEMS)
@pytest.mark.parametrize("shared", [False, True])
def test_put_replace_and_remove(kind, shared, folder):
    """With a folder, another catalogue sees each at its next look, and so does one that is made later."""
    path = str(folder) if shared else ""
    one = Catalogue(path)
    others = [one, Catalogue(path)] if shared else [one]
    for value in (1, 2):
        for name in GOOD:
            version = one.version
            one.put(name, ITEMS[kind](value))
            assert one.version > version
        for each in [*others, *([Catalogue(path)] if shared else [])]:
            version = each.version
            for name in GOOD:
                assert get(each, kind, name).digest == ITEMS[kind](value).digest
            assert held(each, kind).keys() == set(GOOD)
            assert each is one or each.version == version + (each in others)
    suffix = ".safetensors" if kind is SteeringVector else ".json"
    assert files(folder) == (sorted(name + suffix for name in GOOD) if shared else [])
    for number, name in enumerate(GOOD):
        version = one.version
        one.remove(kind, name)
        assert one.version > version
        for each in others:
            with pytest.raises(ValueError, match=f"there is no .* {name!r}"):
                get(each, kind, name)
            assert held(each, kind).keys() == set(GOOD[number + 1 :])
        with pytest.raises(KeyError):
            one.remove(kind, name)
    assert files(folder.parent) == ["shared"]


def test_a_vector_and_a_plan_may_have_one_name(folder):
    one = Catalogue(str(folder))
    one.put("both", vector(1))
    one.put("both", plan(2))
    for each in (one, Catalogue(str(folder))):
        assert (each.vector("both").digest, each.plan("both")) == (vector(1).digest, plan(2))
    one.remove(Plan, "both")
    assert one.vector("both").digest == vector(1).digest


@pytest.mark.parametrize("shared", [False, True])
def test_the_limit_is_of_both_together(shared, folder):
    one = Catalogue(str(folder) if shared else "", limit=2)
    one.put("a", vector(1))
    one.put("a", plan(1))
    before = files(folder)
    for item in (vector(1), plan(1)):
        with pytest.raises(ValueError, match=r"holds 2 .*STEERFAST_MAX_VECTORS"):
            one.put("b", item)
    assert files(folder) == before
    one.put("a", vector(2))  # no more than before
    one.remove(Plan, "a")
    one.put("b", vector(3))
    assert one.vectors().keys() == {"a", "b"}


def test_a_put_that_fails_changes_nothing(folder, monkeypatch):
    one = Catalogue(str(folder))
    one.put("a", vector(1))

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(module, "save_vector", full)
    with pytest.raises(OSError, match="no space"):
        one.put("a", vector(2))
    assert one.vector("a").digest == Catalogue(str(folder)).vector("a").digest == vector(1).digest


def test_files_without_a_valid_name_are_left_alone(folder):
    for name in (".hidden.json", "two words.json", "notes.txt", ".safetensors"):
        (folder / name).write_text("nothing to read")
    assert Catalogue(str(folder)).plans() == Catalogue(str(folder)).vectors() == {}


ABOUT = {"format": "steerfast.vector/1", "name": "v"}
BROKEN = {
    "text.json": b"{",
    "bytes.json": b"\xff\xfe\x00",
    "list.json": b"[]",
    "deep.json": 100_000 * b"[",
    "number.json": plan_to_json(plan(1)).replace("0.5", "9" * 400).encode(),
    "digest.json": b'{"terms": [{"vector": "joy", "vector_digest": 5}]}',
    "names-nobody.json": b'{"terms": [{"vector": "nobody"}]}',
    "folder.json": None,
    "empty.safetensors": b"",
    "short.safetensors": b"\x00\x01",
    "bare.safetensors": {},
    "text.safetensors": {"steerfast": "{"},
    "list.safetensors": {"steerfast": "[]"},
    "format.safetensors": {"steerfast": json.dumps({**ABOUT, "format": "steerfast.vector/9"})},
    "norm.safetensors": {"steerfast": json.dumps({**ABOUT, "stream_norms": {"0": 10**400}})},
    "folder.safetensors": None,
    "link.safetensors": "nowhere",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_stops_the_start_and_later_is_logged_and_left_out(name, folder, caplog):
    one, content, path = Catalogue(str(folder)), BROKEN[name], folder / name
    one.put("joy", vector(1))
    if content is None:
        path.mkdir()
    elif isinstance(content, str):
        path.symlink_to(content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file({"directions.0": torch.ones(8)}, path, metadata=content)
    Catalogue(str(folder.parent)).put("new", vector(2))
    os.replace(folder.parent / "new.safetensors", folder / "new.safetensors")
    with pytest.raises(ValueError, match=r"."):
        Catalogue(str(folder))
    with caplog.at_level(logging.ERROR, "steerfast"):
        assert one.vector("joy").digest == vector(1).digest
    assert f"{name} is left out" in caplog.text
    assert (one.vectors().keys(), one.plans()) == ({"joy", "new"}, {})


def test_a_request_that_finds_the_folder_gone_is_told(folder):
    one = PlanReader(Settings(vectors=str(folder)), 1, 8)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"."):
        one.read('{"terms": [{"vector": "joy"}]}')


def test_what_another_has_put_can_be_removed_at_once(folder):
    one, other = Catalogue(str(folder)), Catalogue(str(folder))
    one.put("a", vector(1))
    other.remove(SteeringVector, "a")
    with pytest.raises(ValueError, match="there is no vector 'a'"):
        one.vector("a")


def test_the_limit_counts_what_another_has_put(folder):
    one, other = (Catalogue(str(folder), limit=1) for _ in "12")
    one.put("a", vector(1))
    with pytest.raises(ValueError, match="holds 1 "):
        other.put("b", vector(1))


def test_two_may_put_one_name_at_a_time(folder, monkeypatch):
    """The other comes and goes while the first one's file is written."""
    one, other, meanwhile = Catalogue(str(folder)), Catalogue(str(folder)), [vector(2)]

    def slowly(item, path):
        save_vector(item, path)
        if meanwhile:
            other.put("a", meanwhile.pop())

    monkeypatch.setattr(module, "save_vector", slowly)
    one.put("a", vector(1))
    assert {each.vector("a").digest for each in (one, other)} == {vector(1).digest}
    assert files(folder) == ["a.safetensors"]


def test_changes_within_one_tick_of_the_clock_are_seen(folder):
    """Many file systems stamp by a clock of milliseconds or seconds; a replaced vector is as long as the old one."""
    one, other = Catalogue(str(folder)), Catalogue(str(folder))

    def put(name, value):
        one.put(name, vector(value))
        for path in (folder / f"{name}.safetensors", folder):
            os.utime(path, ns=(tick, tick))

    tick = folder.stat().st_mtime_ns
    put("a", 1)
    assert other.vector("a").digest == vector(1).digest
    put("b", 1)
    put("a", 2)
    assert other.vector("b").digest == vector(1).digest
    assert other.vector("a").digest == vector(2).digest


def test_a_file_that_is_overwritten_in_its_place_is_read_again(folder):
    save_plan(plan(1), folder / "polite.json")
    one = Catalogue(str(folder))
    save_plan(plan(22), folder / "polite.json")
    assert one.plan("polite") == plan(22)


INLINE = vector_to_json(vector(1))


@pytest.mark.parametrize(
    "change",
    [
        *({"positions": value} for value in (0, -1, "x", 10**30, 1e400)),
        *({"stream_norms": value} for value in (5, {"0": 0}, {"0": "x"}, {"0": 10**400})),
        *({"directions": value} for value in (5, {}, {"0": "!"}, {"0": ""}, {"0": "AADAfw=="})),
        *({"provenance": value} for value in (5, [[[], 1]])),
        {"norms": {}},
    ],
    ids=lambda change: str(change)[:30],
)
def test_a_vector_that_cannot_be_read_is_refused(change):
    assert read_vector(json.dumps(INLINE), "v") == vector(1) != read_vector(json.dumps(INLINE), "x")
    with pytest.raises(ValueError, match=r"vector|provenance|stream.norm"):
        read_vector(json.dumps({**INLINE, **change}), "x")


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", b"\xff", 20_000 * "["], ids=ascii)
def test_text_that_is_no_vector_is_refused(text):
    with pytest.raises(ValueError, match=r"vector|Expecting"):
        read_vector(text, "x")
