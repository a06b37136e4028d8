"""Files of vectors and plans, of any library."""

from steerfast.io.loading import load
from steerfast.io.plans import load_plan, plan_from_json, plan_to_json, save_plan
from steerfast.io.saving import save
from steerfast.io.vectors import load_vector, save_vector

__all__ = [
    "load",
    "load_plan",
    "load_vector",
    "plan_from_json",
    "plan_to_json",
    "save",
    "save_plan",
    "save_vector",
]
