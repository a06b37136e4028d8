"""Layers of a model found, wiring proven.

A wiring is read off from one short forward of the model's own layers, and proven on it: the kernels that would stand in for
a layer's additions and norms make the same streams, to the bit. What has no wiring is steered behind its own forward.
"""

from steerfast.decoders.find import Decoder, find_decoder
from steerfast.decoders.look import look
from steerfast.decoders.survey import Found, Survey
from steerfast.decoders.wiring import Step, Wiring

__all__ = ["Decoder", "Found", "Step", "Survey", "Wiring", "find_decoder", "look"]
