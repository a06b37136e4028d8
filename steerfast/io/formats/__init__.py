"""Formats of other libraries, a file each: how a vector lies in it, and which place in the model its layers mean."""
