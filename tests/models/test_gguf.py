"""GGUF files read once: what is read is what ``gguf`` itself reads, and its names are put back."""

from __future__ import annotations

import numpy
import pytest

from steerfast.models.gguf import read_once

gguf = pytest.importorskip("gguf")


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a", "bé", ""])
    writer.add_array("scores", [0.5, -1.0])
    writer.add_tensor("output_norm.weight", numpy.arange(64, dtype=numpy.float32))
    quantised = gguf.quantize(
        numpy.linspace(-1, 1, 128, dtype=numpy.float32).reshape(2, 64),
        gguf.GGMLQuantizationType.Q4_1,
    )
    writer.add_tensor("output.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_the_same_is_read_and_once(path):
    plain, names = gguf.GGUFReader(path), gguf.get_tensor_name_map
    reader = gguf.GGUFReader
    with read_once():
        read = gguf.GGUFReader(path)
        assert gguf.GGUFReader(path) is read
        arch = gguf.MODEL_ARCH.LLAMA
        assert gguf.get_tensor_name_map(arch, 2) is gguf.get_tensor_name_map(arch, 2)
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == (reader, names)
    assert list(read.fields) == list(plain.fields)
    for name, field in plain.fields.items():
        assert read.fields[name].contents() == field.contents()
        assert read.fields[name].types == field.types
    for one, two in zip(read.tensors, plain.tensors, strict=True):
        assert (one.name, one.tensor_type) == (two.name, two.tensor_type)
        numpy.testing.assert_array_equal(
            gguf.dequantize(one.data, one.tensor_type), gguf.dequantize(two.data, two.tensor_type)
        )


def test_names_come_back_after_an_error(path):
    reader = gguf.GGUFReader
    with pytest.raises(FileNotFoundError), read_once():
        gguf.GGUFReader(path.with_name("absent.gguf"))
    assert gguf.GGUFReader is reader
