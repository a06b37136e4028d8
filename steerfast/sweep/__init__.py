"""Many plans over many prompts, in batches that hold rows of many plans.

Layers below the first steered one run once for each prompt, and a row is copied only where plans part, so that a
grid search costs a fraction of one forward for each cell.
"""

from steerfast.sweep.engine import buckets, default_batch_tokens, sweep
from steerfast.sweep.forked import ForkedPass, Readout
from steerfast.sweep.readouts import Accuracy, NextAnswer, NextTokens

__all__ = [
    "Accuracy",
    "ForkedPass",
    "NextAnswer",
    "NextTokens",
    "Readout",
    "buckets",
    "default_batch_tokens",
    "sweep",
]
