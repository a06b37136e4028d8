"""Many requests, each with a plan of its own: continuous batching made simple."""

from __future__ import annotations

from steerfast.serving.batch import Completion, Request, generate_batch

__all__ = ["Completion", "Request", "generate_batch"]
