"""Activation generation: vectors from contrast pairs or from two corpora.

Streams are read at every layer's output, as running float64 means; norms come along, so that a coefficient can mean
the same at every layer. Contrast sets ship with the package, or are files of one's own.
"""

from steerfast.extraction.contrast import ContrastPair, ContrastSet
from steerfast.extraction.extract import extract_corpora, extract_pairs, with_stream_norms
from steerfast.extraction.texts import read_texts

__all__ = [
    "ContrastPair",
    "ContrastSet",
    "extract_corpora",
    "extract_pairs",
    "read_texts",
    "with_stream_norms",
]
