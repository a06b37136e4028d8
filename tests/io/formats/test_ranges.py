"""A feature out of gigabytes by ranged reads; servers and headers that lie; addresses of the hub."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import torch
from ranged_server import serving
from safetensors.torch import save_file

from steerfast import load
from steerfast.io import byte_ranges, places
from steerfast.io.byte_ranges import LocalRanges, WebRanges

gguf = pytest.importorskip("gguf")

D, F = 2048, 2**18  # two matrices of 2 GiB each in float32
FEATURE = 123_456
BUDGET = 10**6


@pytest.fixture(scope="module")
def gigabytes(tmp_path_factory):
    """(path, encoder column, decoder row): a Gemma Scope 2 file of 4 GB, of which a sparse file stores a few blocks."""
    path = tmp_path_factory.mktemp("sae") / "layer_9_width_262k.safetensors"
    shapes = {"w_enc": (D, F), "w_dec": (F, D), "b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    encoder, decoder = rng.standard_normal((2, D)).astype("<f4")
    begin = 8 + len(text)

    def put(file, name, index, values):
        file.seek(begin + header[name]["data_offsets"][0] + 4 * index)
        file.write(np.asarray(values, "<f4").tobytes())

    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(begin + at)
        for line in range(D):
            put(file, "w_enc", line * F + FEATURE, encoder[line])
        put(file, "w_dec", FEATURE * D, decoder)
        put(file, "b_enc", FEATURE, 0.5)
        put(file, "threshold", FEATURE, 0.25)
    assert path.stat().st_size > 4 * 10**9
    return path, encoder, decoder


@pytest.fixture
def counted(monkeypatch):
    """All readers that were opened."""
    opened = []
    for kind in (LocalRanges, WebRanges):
        before = kind.__init__

        def noting(self, *given, before=before):
            before(self, *given)
            opened.append(self)

        monkeypatch.setattr(kind, "__init__", noting)
    return opened


def check(plan, encoder, decoder):
    (term,) = plan.terms
    assert np.array_equal(term.read.at(9), encoder)
    assert np.array_equal(term.vector.at(9), decoder)
    assert (term.bias, term.threshold, term.target) == (0.5, 0.25, 4.0)


def test_a_feature_of_a_file_of_4_gb_takes_kilobytes(gigabytes, counted):
    path, encoder, decoder = gigabytes
    check(load(f"{path}#{FEATURE}", target=4.0), encoder, decoder)
    taken = sum(one.taken for one in counted)
    assert 8 * D < taken < BUDGET
    assert np.array_equal(load(f"{path}#{FEATURE}").at(9), decoder)


def test_and_over_http_it_is_not_downloaded(gigabytes, counted):
    path, encoder, decoder = gigabytes
    with serving(path.parent) as server:
        vector = load(f"{server.url}{path.name}#{FEATURE}")
        assert np.array_equal(vector.at(9), decoder)
        assert server.served < 20_000
        check(load(f"{server.url}{path.name}#{FEATURE}", target=4.0), encoder, decoder)
        assert server.served < BUDGET
        assert sum(one.taken for one in counted) < BUDGET


def small(folder):
    rng = torch.Generator().manual_seed(0)
    names = {"w_enc": (4, 9), "w_dec": (9, 4), "b_enc": (9,), "b_dec": (4,), "threshold": (9,)}
    tensors = {name: torch.randn(shape, generator=rng) for name, shape in names.items()}
    save_file(tensors, folder / "layer_2.safetensors")
    return tensors


def test_a_server_without_ranges_is_refused_and_not_read(tmp_path):
    small(tmp_path)
    with (
        serving(tmp_path, ranges=False) as server,
        pytest.raises(ValueError, match="served without ranges"),
    ):
        load(f"{server.url}layer_2.safetensors#0")


def test_what_is_not_there(tmp_path):
    with serving(tmp_path) as server, pytest.raises(FileNotFoundError, match="answers 404"):
        load(f"{server.url}layer_2.safetensors#0")
    with pytest.raises(OSError, match=r"cannot be read|refused"):
        load("http://127.0.0.1:9/layer_2.safetensors#0")


def test_headers_go_to_the_first_host_only(tmp_path):
    tensors = small(tmp_path)
    with serving(tmp_path) as server:
        ranges = WebRanges(
            f"{server.url}moved/layer_2.safetensors", {"Authorization": "Bearer secret"}
        )
        assert ranges.read(0, 8) == (tmp_path / "layer_2.safetensors").read_bytes()[:8]
        ranges.close()
        sent = {path: headers.get("Authorization") for path, _, headers in server.requests}
        assert sent == {"/moved/layer_2.safetensors": "Bearer secret", "/layer_2.safetensors": None}
        assert torch.equal(
            load(f"{server.url}moved/layer_2.safetensors#3").at(2), tensors["w_dec"][3]
        )


def test_small_files_are_fetched_whole(tmp_path, monkeypatch):
    np.save(tmp_path / "v.npy", np.ones((2, 3), np.float32))
    with serving(tmp_path) as server:
        vector = load(f"{server.url}v.npy?download=true", layers_are="outputs")
        assert (vector.name, vector.layers) == ("v", (0, 1))
        monkeypatch.setattr(places, "LARGEST_DOWNLOAD", 100)
        with pytest.raises(ValueError, match="fetched whole are at most 100; download it"):
            load(f"{server.url}v.npy", layers_are="outputs")


def test_reading_beyond_the_end(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    ranges = LocalRanges(tmp_path / "x")
    assert ranges.read(1, 2) == b"bc"
    with pytest.raises(ValueError, match="2 bytes at 2 are not in a file of 3"):
        ranges.read(2, 2)
    with pytest.raises(ValueError, match="is no address of a web server"):
        WebRanges("ftp://host/x")
    assert byte_ranges.RangedFile(ranges).read() == b"abc"


# -- headers that lie


def header(**tensors):
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def entry(shape=(2, 3), dtype="F32", offsets=(0, 24)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


REST = {
    "w_dec": entry((3, 2)),
    "b_enc": entry((3,), offsets=(0, 12)),
    "b_dec": entry((2,), offsets=(0, 8)),
}
LIES = {
    "its header is said to have 4611686018427387904 bytes": struct.pack("<Q", 2**62) + b"{}",
    "takes 24 bytes, but 23 are its": header(w_enc=entry(offsets=(0, 23)), **REST),
    "are not in a file of": header(w_enc=entry((2**30, 3), offsets=(0, 12 * 2**30)), **REST),
    "has 3 offsets": header(w_enc=entry(offsets=(0, 1, 2)), **REST),
    "whole number from 0 on, got -1": header(w_enc=entry((-1, 3)), **REST),
    "the shape of tensor 'w_enc' is a list": header(w_enc=entry("x"), **REST),
    "has 'w_enc' twice": struct.pack("<Q", 24) + b'{"w_enc": 1, "w_enc": 2}',
    "are those of no SAE": header(w_enc=entry(dtype="I32"), **REST),
    "does not show 3 features of 2 values": header(w_enc=entry((6, 1)), **REST),
    "biases of an SAE are vectors": header(
        **{**REST, "w_enc": entry(), "b_enc": entry((3, 1), offsets=(0, 12))}
    ),
}


@pytest.mark.parametrize("message", LIES)
def test_a_header_that_lies_is_refused(message, tmp_path):
    path = tmp_path / "layer_1.safetensors"
    path.write_bytes(LIES[message] + b"\0" * 24)
    with pytest.raises(ValueError, match="cannot be loaded") as caught:
        load(f"{path}#0")
    if "no SAE" not in message:
        assert message in str(caught.value)


# -- the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose repositories are folders: owner/repo/..., of models and of data sets."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def download(repo, name, revision=None, repo_type=None):
        asked.append((repo_type, repo, revision, name))
        found = tmp_path / repo / name
        if not found.is_file():
            raise LocalEntryNotFoundError("not in the cache")
        return str(found)

    def cached(repo, name, revision=None, repo_type=None):
        found = tmp_path / repo / name
        return str(found) if found.is_file() else None

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    return tmp_path, asked


def test_vectors_of_the_hub(hub):
    folder, asked = hub
    (folder / "me/vectors/sub").mkdir(parents=True)
    torch.save(torch.ones(2, 3), folder / "me/vectors/sub/assistant_axis.pt")
    for address, kind, revision in (
        ("hf://me/vectors/sub/assistant_axis.pt", "model", None),
        ("hf://datasets/me/vectors/sub/assistant_axis.pt", "dataset", None),
        ("hf://me/vectors@v1/sub/assistant_axis.pt", "model", "v1"),
    ):
        assert load(address).layers == (0, 1)
        assert asked.pop() == (kind, "me/vectors", revision, "sub/assistant_axis.pt")
    with pytest.raises(
        OSError, match=r"hf://me/vectors/absent\.gguf cannot be fetched|not in the cache"
    ):
        load("hf://me/vectors/absent.gguf")
    for wrong in ("hf://vectors.gguf", "hf://a/b", "s3://a/b/c.gguf"):
        with pytest.raises(ValueError, match=r"is not hf://|is no path, and no address"):
            load(wrong)


def test_features_of_the_hub_find_what_lies_beside_them(hub):
    folder, _ = hub
    (folder / "me/sae/resid_post/layer_2").mkdir(parents=True)
    tensors = small(folder / "me/sae/resid_post/layer_2")
    (folder / "me/sae/resid_post/layer_2/config.json").write_text(
        '{"hf_hook_point_in": "model.layers.2.output"}'
    )
    vector = load("hf://me/sae/resid_post/layer_2/layer_2.safetensors#4")
    assert torch.equal(vector.at(2), tensors["w_dec"][4])
    with pytest.raises(FileNotFoundError, match="is not in the cache, and the hub is switched off"):
        load("hf://me/sae/absent/layer_2.safetensors#4")


def test_a_file_whose_name_has_a_hash(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a#1.gguf", "controlvector")
    writer.add_tensor("direction.1", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert load(f"{tmp_path}/a#1.gguf").name == "a#1"
    with pytest.raises(ValueError, match="it has no parts"):
        load(f"{tmp_path}/a#1.gguf#x")
    with pytest.raises(FileNotFoundError, match="no vector file at"):
        load(f"{tmp_path}/b.gguf")
    with pytest.raises(ValueError, match="is a folder"):
        load(tmp_path)
    (tmp_path / "v.ckpt").touch()
    with pytest.raises(ValueError, match=r"ends in '\.ckpt', which is no format that is known"):
        load(tmp_path / "v.ckpt")
