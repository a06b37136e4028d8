"""Plans into fixed tensors: what the kernels read.

Lowering cuts a plan into phases and collapses what is constant into one delta a site; programs hold what depends on
the row; packing makes both content-addressed; the table keeps them in slots, at addresses that never change.
"""

from steerfast.table.entry import UNSTEERED, Entry
from steerfast.table.lowering import Lowered, Phase, lower
from steerfast.table.table import Table

__all__ = ["UNSTEERED", "Entry", "Lowered", "Phase", "Table", "lower"]
