"""A folder as a corpus: its texts, whatever else lies in it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from steerfast.extraction import read_texts
from steerfast.extraction.texts import count_texts

PICTURE = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256))


@pytest.fixture
def folder(tmp_path):
    files = {
        "b.txt": b"second\n",
        "a.py": b"first = 1\n",
        "deep/er/c": b"\xef\xbb\xbfthird, with a mark\n",
        "deep/empty.txt": b" \n\n",
        "deep/page.txt": "fourth: dé\x1b[1mjà\x1b[0m\f\tvu".encode(),
        "picture.png": PICTURE,
        "picture.txt": PICTURE,
        "__pycache__/a.cpython-311.pyc": b"\xa7\r\r\n\x00\x00\x00\x00compiled",
        ".git/objects/x": b"not this",
        ".hidden.txt": b"nor this",
        "deep/.DS_Store": b"\x00\x00",
    }
    for name, content in files.items():
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "corpus" / "broken").symlink_to("nowhere")
    return tmp_path / "corpus"


TEXTS = ["first = 1", "second", "third, with a mark", "fourth: dé\x1b[1mjà\x1b[0m\f\tvu"]


def test_texts_are_read_and_what_is_none_is_reported(folder):
    with pytest.warns(UserWarning, match="left out") as said:
        assert list(read_texts(folder)) == TEXTS
    (message,) = [str(one.message) for one in said]
    assert message.startswith(f"{folder}: 5 files read as texts; left out 3 that are no text (")
    assert "picture.png" in message
    assert message.endswith(", 3 hidden")
    with pytest.warns(UserWarning, match="left out 3"):
        assert count_texts(folder, limit=2) == 2


def test_a_folder_of_texts_says_nothing(folder):
    for name in ("picture.png", "picture.txt", "__pycache__/a.cpython-311.pyc"):
        (folder / name).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(read_texts(folder)) == TEXTS


ROWS = {
    "c.jsonl": '{"text": "one"}\n\n{"prompt": "two", "id": 3}\n',
    "d.NDJSON": '{"messages": [{"role": "user", "content": "three"}]}\n',
    "e.json": '["four", {"text": "five"}]',
    "f.csv": "id,text\n1,six\n2,seven\n",
    "g.json": '{"texts": ["eight"]}',
    "h.jsonl": "\n",
    "package.json": '{"name": "a package", "files": ["x"]}',
    "table.csv": "id,price\n1,2\n",
    "spoiled.json": '["four",',
}
ONE = {"package.json", "table.csv", "spoiled.json"}


def test_files_of_rows_in_a_folder_are_read_as_rows(tmp_path):
    """Rows are texts; what is data of another kind is a text itself, as a program's files are in a corpus of code."""
    for name, content in ROWS.items():
        (tmp_path / name).write_text(content)
    said = ({"role": "user", "content": "three"},)
    texts = ["one", "two", said, "four", "five", "six", "seven", "eight"]
    texts += [ROWS[name].strip() for name in sorted(ONE)]
    assert sorted(map(str, read_texts(tmp_path))) == sorted(map(str, texts))


@pytest.mark.parametrize(
    ("line", "reason"),
    [('{"title": "x"}', "a row with title"), ("{broken", "line 2, "), ("5", "text 2 of")],
)
def test_a_row_without_a_text_is_refused(line, reason, tmp_path):
    """And not read as a text, nor left out."""
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' + line)
    with pytest.raises(ValueError, match=rf"{reason}.*take it out of the folder"):
        list(read_texts(tmp_path))


@pytest.mark.parametrize(
    ("content", "place"),
    [("caf\xe9 au lait".encode("latin-1"), "byte 3"), ("text".encode("utf-16"), "byte 0"), (b"x" * 9000 + b"\xff", "byte 9000")],
    ids=["latin-1", "utf-16", "far"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*left out")
def test_text_in_another_encoding_is_named(content, place, folder):
    (folder / "deep" / "cafe.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"cafe\.txt is text, but not in UTF-8 .* {place}"):
        list(read_texts(folder))


@pytest.mark.filterwarnings("ignore:.*left out")
def test_a_folder_without_text(tmp_path):
    (tmp_path / "picture.png").write_bytes(PICTURE)
    with pytest.raises(ValueError, match="holds no text"):
        list(read_texts(tmp_path))


def test_a_package_of_pythons_own_library():
    """Files by many hands; what Python has compiled beside them is left out."""
    import email

    folder = Path(email.__file__).parent
    files = [one for one in folder.rglob("*") if one.is_file() and one.suffix != ".pyc"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert list(read_texts(folder)) == [
            text for one in sorted(files) if (text := one.read_text("utf-8").strip())
        ]
