"""The scripts of docs/examples that need vLLM, run as a user runs them, on a tiny Llama."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


def printed(name, folder, where):
    """{what: text} of the lines `what: 'text'` that a script prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), str(folder)],
        cwd=where,  # no metadata of the checkout in the way
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    lines = re.findall(r"""^([\w.+-]+): ((['"]).*\3)$""", done.stdout, re.M)
    return {what: eval(text) for what, text, _ in lines}


def test_one_plan_two_engines(folder, tmp_path):
    said = printed("one_plan_two_engines.py", folder, tmp_path)
    assert list(said) == ["unsteered", "transformers", "vLLM"]
    # Bytes at an end that begin no letter yet are shown by one engine and not by the other.
    texts = {name: text.rstrip("\N{REPLACEMENT CHARACTER}") for name, text in said.items()}
    assert texts["vLLM"] == texts["transformers"] != texts["unsteered"]


def test_server_and_client(folder, tmp_path):
    said = printed("server_and_client.py", folder, tmp_path)
    assert list(said) == ["+0.0", "+0.2", "-0.2"]
    assert len(set(said.values())) == 3
    assert all(said.values())
