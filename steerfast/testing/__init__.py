"""Cases and laws that hold for every backend.

For the tests, and for anybody who writes another backend:

    for case in cases():
        stream, normed = my_backend.steer_add_rms_norm(*case.arguments)
        case.check(stream, normed)
    for law in (LAWS | EXACT_LAWS | FAR_LAWS).values():
        law(my_backend, dtype=torch.bfloat16, width=576)

A backend is anything with the functions of ``steerfast.ops``, such as that module. Checks raise AssertionError.
"""

from steerfast.testing.bounds import MARGIN, RELATIVE
from steerfast.testing.case import Case, bits, ulp
from steerfast.testing.exact import EXACT_LAWS
from steerfast.testing.far import FAR_LAWS
from steerfast.testing.laws import LAWS
from steerfast.testing.suite import DTYPES, ROWS, WIDTHS, cases
from steerfast.testing.table import Table

__all__ = [
    "DTYPES",
    "EXACT_LAWS",
    "FAR_LAWS",
    "LAWS",
    "MARGIN",
    "RELATIVE",
    "ROWS",
    "WIDTHS",
    "Case",
    "Table",
    "bits",
    "cases",
    "ulp",
]
