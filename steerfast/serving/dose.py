"""The dose that a server's guard looks at: the greatest of any site (``steerfast.table.dose`` says what a dose is)."""

from __future__ import annotations

from steerfast.plans.plan import Plan
from steerfast.plans.sites import site_name
from steerfast.table.dose import doses
from steerfast.table.lowering import Lowered


def dose(plan: Plan, lowered: Lowered) -> tuple[float, str]:
    """(the greatest dose of any phase, at which site). (0, "") where no vector carries the norms to tell."""
    phases = doses(plan, lowered.phases)
    every = ((dose, site_name(site)) for phase in phases for site, dose in phase.items())
    return max(every, default=(0.0, ""))
