"""The vocabulary: what a request gets, as immutable values.

A vector is a named direction by layer; a term adds one to the stream, by an operator, at its sites; a plan is
terms with a finish, a schedule and perhaps a condition. Selectors say which tokens. Nothing here computes.
"""

from steerfast.plans.condition import Condition, Test
from steerfast.plans.operators import OPERATORS, Operator
from steerfast.plans.plan import Finish, Plan, steer
from steerfast.plans.schedule import Schedule
from steerfast.plans.selectors import AfterSequence, First, Positions, Select
from steerfast.plans.sites import Site, site_count, site_index, site_name
from steerfast.plans.term import Gate, Scale, Term
from steerfast.plans.vector import SteeringVector

__all__ = [
    "OPERATORS",
    "AfterSequence",
    "Condition",
    "Finish",
    "First",
    "Gate",
    "Operator",
    "Plan",
    "Positions",
    "Scale",
    "Schedule",
    "Select",
    "Site",
    "SteeringVector",
    "Term",
    "Test",
    "site_count",
    "site_index",
    "site_name",
    "steer",
]
