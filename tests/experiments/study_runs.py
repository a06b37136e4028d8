"""A small configuration of every study, and the command line that runs one."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from steerfast.cli import app

TOML = """
model = "tiny"
dtype = "float32"

[behaviours]
behaviours = ["myopic", "agreeableness"]
train = 6
validation = 5
test = 6
layers = [0, 2]
coefficients = [0.5, 1]
scale = "stream"
choose = "log_odds"
individual_layers = [1, 2]
global_coefficients = [-1.0, 1.0, 1.0]
pair_coefficient = 0.5
tax_tokens = 1500
examples = ["Human: a", "b"]
simultaneous = { myopic = 1, agreeableness = 2 }

[broad]
samples = 4
sample_tokens = 40
tokens = 150
context = 64
layers = [[0], [2], [1, 2]]
coefficients = [0.5, 1, 2, 4]
scale = "stream"
control_layer = 2
examples = ["def f"]
"""


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output + str(result.exception)
    return json.loads(result.stdout.splitlines()[-1])
