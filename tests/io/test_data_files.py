"""Rows of data files: the same from every kind of file, each with its line; what is wrong is named with file and line."""

from __future__ import annotations

import json
import re

import pytest

from steerfast.io.rows import ENDINGS, Row, rows_of

ROWS = [
    {"a": "one, two", "b": ' "said"\nand more'},
    {"a": "ä\u2028ö", "b": "x"},
    {"a": "3", "b": ";"},
]
CSV = 'a,b\n"one, two"," ""said""\nand more"\nä\u2028ö,x\n\n3,;\n'
FILES = {
    "x.json": [
        (json.dumps(ROWS), [1, 1, 1]),
        (json.dumps({"about": {"rows": [1, [2]]}, "rows": ROWS, "z": [3]}), [1, 1, 1]),
        (json.dumps(ROWS, indent=1, ensure_ascii=False), [2, 6, 10]),
        (json.dumps({"z": "[\n]", "rows": ROWS}, indent=2), [4, 8, 12]),
        ("\n\n" + "\n".join(map(json.dumps, ROWS)), [3, 4, 5]),
    ],
    "x.jsonl": [
        ("\n".join(map(json.dumps, ROWS)), [1, 2, 3]),
        ("\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\r\n", [1, 3, 5]),
    ],
    "x.NDJSON": [("\ufeff" + "\n".join(map(json.dumps, ROWS)), [1, 2, 3])],
    "x.csv": [
        (CSV, [2, 4, 6]),
        ("\ufeff" + CSV.replace("\n", "\r\n").replace("\r\nand", "\nand"), [2, 4, 6]),
        ("\n a , b \n" + CSV[4:], [3, 5, 7]),
        ('a;b\none, two;" ""said""\nand more"\nä\u2028ö;x\n3;";"\n', [2, 4, 5]),
    ],
    "x.tsv": [('a\tb\none, two\t" ""said""\nand more"\nä\u2028ö\tx\n3\t;\n', [2, 4, 5])],
    "rows": [("\n".join(map(json.dumps, ROWS)), [1, 2, 3])],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [(name, *one) for name, each in FILES.items() for one in each],
    ids=range(sum(map(len, FILES.values()))),
)
def test_every_kind_of_file_holds_the_same_rows(name, text, lines, tmp_path):
    path = tmp_path / name
    path.write_bytes(text.encode())
    _, rows = rows_of(path, "rows", ("about", "z"))
    wanted = [Row(row, f"{path} (line {line})") for row, line in zip(ROWS, lines, strict=True)]
    assert list(rows) == wanted


def test_what_stands_beside_the_rows(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"name": "n", "rows": [], "about": 5}')
    facts, rows = rows_of(path, "rows", ("name", "about"))
    assert (facts, list(rows)) == ({"name": "n", "about": 5}, [])
    with pytest.raises(ValueError, match=r"x\.json has unknown keys \['name'\]; known: about"):
        rows_of(path, "rows", ["about"])


def test_rows_of_other_kinds(tmp_path):
    for name, text in (("x.json", '["a", ["b", 1], null]'), ("x.jsonl", '"a"\n["b", 1]\nnull')):
        (tmp_path / name).write_text(text)
        assert [row.value for row in rows_of(tmp_path / name, "rows")[1]] == ["a", ["b", 1], None]
    (tmp_path / "x.csv").write_text("a,b\n,1\n,\n2,\n")
    assert [row.value for row in rows_of(tmp_path / "x.csv", "rows")[1]] == [{"b": "1"}, {"a": "2"}]
    for name in ("x.jsonl", "x.csv", "x.tsv"):
        (tmp_path / name).write_text("")
        assert list(rows_of(tmp_path / name, "rows")[1]) == []


REFUSED = {
    "x.json": {
        "": "is JSON, but this text is not",
        "5": "is an object, got 5",
        "{}": "'rows' of .* is a list",
        '{"rows": 5}': "'rows' of .* is a list",
        '[1,\n2,\n,3]': "is JSON, but this text is not.*line 3",
        '{"a": 1}\n{"a": 1, "a": 2}': r"line 2, has 'a' twice",
        '{"a": 1}\n{"a": NaN}': r"line 2, holds NaN",
        100_000 * "[": "nested too deeply",
        "[1]\n" + 100_000 * "[": "line 2, is nested too deeply",
        b"[1]\n\xff": r"line 2, is text in UTF-8, but this is not",
        '["a"]'.encode("utf-16"): r"line 1, is text in UTF-8",
    },
    "x.jsonl": {
        '{"a": 1}\n\n{"a": 1': "line 3, is JSON, but",
        "[\n1]": "line 1, is JSON",
        '"a"\n1e999': "line 2, holds the number",
        b'"a"\n"\xe4"': "line 2, is text in UTF-8",
    },
    "x.csv": {
        "a,b\n1,2\n1,2,3\n": r"line 3\) has 3 cells, but the first line names 2 columns \(a, b\)",
        'a,b\n1,2\n"x\ny",2\n1\n': r"line 5\) has 1 cells",
        "a,b,a\n1,2,3\n": r"line 1\) names the column 'a' twice",
        'a,b\n1,"2\n3,4\n': r"line 2\) is no CSV: unexpected end of data",
        'a,b\n1,2\n1,"2"x\n': r"line 3\) is no CSV: .* expected after",
        "a\n1\n" + 200_000 * "x": r"line 3\) is no CSV: field larger",
        b"a,b\n1,\xe4\n": "line 2, is text in UTF-8",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [(name, text, message) for name, each in REFUSED.items() for text, message in each.items()],
    ids=range(sum(map(len, REFUSED.values()))),
)
def test_what_is_wrong_is_named_with_its_line(name, text, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as caught:
        list(rows_of(path, "rows")[1])
    assert type(caught.value) is ValueError
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if ending != ".json"])
def test_lines_are_read_as_they_are_asked_for(ending, tmp_path):
    mark = "\t" if ending == ".tsv" else ","
    good, bad = (f"a{mark}b\n1{mark}2\n", "1\n") if "sv" in ending else ('{"a": 1}\n', "{\n")
    (tmp_path / f"x{ending}").write_text(good + bad)
    _, rows = rows_of(tmp_path / f"x{ending}", "rows")
    assert "a" in next(rows).value
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        next(rows)
