"""Activation steering fused into the residual stream of Llama models."""

__version__ = "0.1.0"
