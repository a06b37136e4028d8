"""Arrays, dicts and probes in memory; ``.npz`` and ``.npy`` files, and bombs among them."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from steerfast import SteeringVector, load, save

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4) + 1


def test_rows_are_outputs_unless_said_otherwise(tmp_path):
    np.save(tmp_path / "v.npy", ROWS)
    with pytest.warns(UserWarning, match="does not say what its layers mean"):
        assert load(tmp_path / "v.npy").layers == (0, 1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outputs = load(tmp_path / "v.npy", layers_are="outputs")
    assert outputs.at(2).tolist() == ROWS[2].tolist()
    with pytest.warns(UserWarning, match="direction 0 of .* belongs to the embeddings"):
        inputs = load(torch.from_numpy(ROWS), layers_are="inputs")
    assert inputs.layers == (0, 1)
    assert inputs.at(1).tolist() == ROWS[2].tolist()
    with pytest.raises(ValueError, match="layers_are is 'outputs'"):
        load(ROWS, layers_are="output")
    with pytest.raises(ValueError, match="for the embeddings only"):
        load({0: torch.zeros(4)}, layers_are="inputs")


def test_one_direction_needs_its_layer():
    assert load(ROWS[0], layer=2).layers == (2,)
    with pytest.raises(ValueError, match="does not say of which layer; give layer="):
        load(ROWS[0])
    with pytest.raises(ValueError, match="names layer 2000"):
        load(ROWS[0], layer=2000)


def test_dicts_by_layer():
    same = load({3: ROWS[0], 5: torch.from_numpy(ROWS[1])}, layers_are="outputs")
    assert same.layers == (3, 5)
    assert load({"layer_3": torch.ones(2)}, layers_are="outputs").layers == (3,)
    with pytest.raises(ValueError, match="layer 3 twice"):
        load({3: torch.ones(2), "3": torch.ones(2)})
    with pytest.raises(TypeError, match="load takes a path"):
        load(3.5)
    with pytest.raises(TypeError, match="is a SteeringVector already"):
        load(same)


def test_npz_names_layers_or_one_array(tmp_path):
    np.savez(tmp_path / "v.npz", layer_3=ROWS[0], layer_7=ROWS[1].astype(np.float64))
    vector = load(tmp_path / "v.npz", layers_are="outputs")
    assert (vector.name, vector.layers) == ("v", (3, 7))
    np.savez(tmp_path / "w.npz", mean=ROWS, spread=ROWS * 2)
    with pytest.raises(ValueError, match=r"say which one holds the directions: 'w\.npz#mean'"):
        load(tmp_path / "w.npz")
    twice = load(f"{tmp_path}/w.npz#spread", layers_are="outputs")
    assert twice.at(0).tolist() == (ROWS[0] * 2).tolist()
    with pytest.raises(ValueError, match="no array 'x'; it has mean, spread"):
        load(f"{tmp_path}/w.npz#x")
    np.savez_compressed(tmp_path / "c.npz", v=np.asfortranarray(ROWS))
    assert load(tmp_path / "c.npz", layers_are="outputs").at(1).tolist() == ROWS[1].tolist()


def npy(header, values=b""):
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values


def shaped(shape, dtype="<f4"):
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"


def pickled():
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


def zipped(entries, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of a name that is there twice
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


NPY = {
    "never pickled objects": pickled(),
    "is no array of numpy": b"\x93NUMPY\x01\x00\xff\xffx",
    "an array of shape [1099511627776] does not lie in": npy(shaped((2**40,))),
    "an array of shape [2, 2] does not lie in": npy(shaped((2, 2)), b"\0" * 15),
    "malformed": npy("{'descr': '<f4', 'shape': (1,)"),
    "Header does not contain the correct keys": npy("{'descr': '<f4', 'shape': (1,), 'x': 1}"),
    "it has the shape (-1,)": npy(shaped((-1,))),
    "is int64 of shape [1, 2]": npy(shaped((1, 2), "<i8"), b"\0" * 16),
    "directions by layer are": npy(shaped((0, 4))),
    "NaN or infinity": npy(shaped((1, 1)), struct.pack("<f", float("nan"))),
}  # fmt: skip


@pytest.mark.parametrize("message", NPY)
def test_an_array_that_lies_is_refused(message, tmp_path):
    (tmp_path / "v.npy").write_bytes(NPY[message])
    with pytest.raises(ValueError, match=r"v\.npy cannot be loaded") as caught:
        load(tmp_path / "v.npy", layers_are="outputs")
    assert message in str(caught.value) or message in (
        "malformed",
        "directions by layer are",
        "is int64 of shape [1, 2]",
    )


GOOD = npy(shaped((1, 2)), struct.pack("<ff", 1, 2))
BOMB = zipped([("v.npy", npy(shaped((1, 2**20))) + b"\0" * 2**22)])
NPZ = {
    "unpacks to 4194": BOMB,
    "no .npz file": b"PK\x03\x04 and no more",
    "the array 'v' twice": zipped([("v.npy", GOOD), ("v.npy", GOOD)]),
    "does not fill its": zipped([("v.npy", GOOD + b"more")]),
    "is no array of numpy": zipped([("v.npy", b"text")]),
    "pickled objects": zipped([("v.npy", pickled())]),
    "cannot be unpacked": zipped([("v.npy", GOOD)], zipfile.ZIP_STORED).replace(
        GOOD, GOOD[:-1] + b"x"
    ),
    "two of its arrays are of one layer": zipped([("3.npy", GOOD), ("layer_3.npy", GOOD)]),
    "it has no arrays": zipped([]),
}


@pytest.mark.parametrize("message", NPZ)
def test_an_archive_that_lies_is_refused(message, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "steerfast.io.formats.npz.MOST_WHOLE", 2**20
    )  # of 256 MiB, for the bomb's sake
    (tmp_path / "v.npz").write_bytes(NPZ[message])
    with pytest.raises(ValueError, match=r"v\.npz cannot be loaded") as caught:
        load(tmp_path / "v.npz", layers_are="outputs")
    assert message in str(caught.value)


def test_what_we_write_we_take_back_whole(tmp_path):
    vector = SteeringVector("joy", {2: torch.randn(8), 9: torch.randn(8)}, {9: 2.5}, {"model": "m"})
    for suffix in (".npz", ".svec"):
        for layers_are in (None, "inputs"):
            again = load(save(vector, tmp_path / f"other{suffix}", layers_are=layers_are))
            assert again == vector
            assert dict(again.stream_norms) == {9: 2.5}
            assert again.provenance["model"] == "m"
    positional = SteeringVector("rows", {1: torch.randn(3, 8)})
    assert load(save(positional, tmp_path / "rows.npz")) == positional
    assert load(save(positional, tmp_path / "rows.svec")) == positional
    with np.load(save(vector, tmp_path / "joy.npz")) as file:  # for any reader of numpy
        assert np.array_equal(file["direction.2"], vector.at(2))


def test_text_that_is_no_unicode_is_refused(tmp_path):
    with np.load(save(SteeringVector("joy", {1: torch.ones(2)}), tmp_path / "v.npz")) as file:
        arrays = {name: file[name] for name in file.files}
    for order in "<>":
        said = np.array(str(arrays["steerfast"]), dtype=f"{order}U{len(str(arrays['steerfast']))}")
        np.savez(tmp_path / "v.npz", **{**arrays, "steerfast": said})
        assert load(tmp_path / "v.npz").name == "joy"
    raw = bytearray(said.tobytes())
    raw[8:12] = b"\x7f" * 4  # a letter beyond the last of Unicode
    said = np.frombuffer(bytes(raw), said.dtype).reshape(())
    np.savez(tmp_path / "v.npz", **{**arrays, "steerfast": said})
    with pytest.raises(ValueError, match=r"cannot be loaded: .*utf-32"):
        load(tmp_path / "v.npz")


# -- probes


class LinearSVC(SimpleNamespace):
    pass


def probe(coef=((1.0, 2.0),), intercept=(0.5,)):
    return LinearSVC(
        coef_=np.array(coef), intercept_=np.array(intercept), classes_=np.array(["no", "yes"])
    )


def test_probes_by_layer():
    vector = load({4: probe(), 6: probe(((3.0, 4.0),))}, name="truth")
    assert vector.layers == (4, 6)
    assert vector.at(6).tolist() == [3.0, 4.0]
    assert vector.provenance["method"] == "LinearSVC"
    assert vector.provenance["intercepts"] == {"4": 0.5, "6": 0.5}
    with pytest.raises(ValueError, match="give layer="):
        load(probe())
    with pytest.raises(ValueError, match="from two classes: fit one against the rest"):
        load(probe(((1.0, 2.0),) * 3), layer=1)
    with pytest.raises(ValueError, match="PCA stands before LinearSVC"):
        load(SimpleNamespace(steps=[("a", type("PCA", (), {})()), ("b", probe())]), layer=1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        load(probe(((float("nan"), 1.0),)), layer=1)
