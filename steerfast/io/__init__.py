"""Files: vectors as safetensors, plans as JSON."""

from steerfast.io.plans import load_plan, plan_from_json, plan_to_json, save_plan
from steerfast.io.vectors import load_vector, save_vector

__all__ = ["load_plan", "load_vector", "plan_from_json", "plan_to_json", "save_plan", "save_vector"]
