"""Patching: a model of transformers whose layers steer, and can be put back exactly.

``attach`` rebinds ``forward`` on the instances: two fused kernels a layer and nothing else. ``generate`` and continuous
batching are routed as they run; a handle says which plans are in use, and reports which rows were steered.
"""

from steerfast.decoders.find import find_decoder, input_device
from steerfast.models.forwards import attachment_of
from steerfast.models.handle import Handle, Report
from steerfast.models.patch import attach, handle_of
from steerfast.models.use import Use

__all__ = [
    "Handle",
    "Report",
    "Use",
    "attach",
    "attachment_of",
    "find_decoder",
    "handle_of",
    "input_device",
]
