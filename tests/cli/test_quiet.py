"""Third parties are quiet in a command's own process, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys

NOISE = """
import logging, sys, warnings
import steerfast.cli
from steerfast.cli import console, quiet
if sys.argv[1] == "command":
    quiet.silence_notes()
console.load(sys.argv[2], "float32")
logging.getLogger("transformers.generation.utils").warning("a note on pad tokens")
logging.getLogger("transformers.generation.utils").error("an error")
logging.getLogger("huggingface_hub.utils").warning("a note of the hub")
logging.getLogger("transformers.modeling_utils").warning("weights are missing")
warnings.warn_explicit("torch changes", FutureWarning, "torch/x.py", 1, module="torch.x")
warnings.warn_explicit("mine changes", FutureWarning, "mine.py", 1, module="mine")
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
print(are_progress_bars_disabled())
"""

# Tests switch bars off, for all; a user's shell does not.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_PROGRESS_BARS"}


def said(how, folder):
    done = subprocess.run(
        [sys.executable, "-c", NOISE, how, str(folder)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"  # a download's bar stays
    return done.stderr


def test_a_command_shows_errors_and_what_matters(tiny_folder):
    text = said("command", tiny_folder)
    for shown in ("an error", "weights are missing", "mine changes"):
        assert shown in text
    for hidden in ("Loading weights", "pad tokens", "torch changes", "note of the hub"):
        assert hidden not in text


def test_a_library_user_sees_all(tiny_folder):
    text = said("library", tiny_folder)
    for shown in ("Loading weights", "pad tokens", "torch changes", "note of the hub", "an error"):
        assert shown in text


def test_main_is_quiet(tiny_folder, tmp_path):
    """The entry point itself, writing a checkpoint: bars of loading and of writing."""
    command = ["checkpoint", str(tmp_path / "copy"), "--model", str(tiny_folder)]
    done = subprocess.run(
        [sys.executable, "-c", "from steerfast.cli import main; main()", *command],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0
    assert (tmp_path / "copy" / "config.json").exists()
    assert "it/s" not in done.stderr
    assert "weights" not in done.stderr
