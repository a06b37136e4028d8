"""docs/studies.md is true: its plans are the three ways, its files are those that a study leaves."""

from __future__ import annotations

from steerfast import Plan, Term


def test_the_examples_run(page):
    given = page("studies.md")
    joy, calm = given["vectors"].values()
    assert given["alone"] == Plan((Term(joy, 2.0, (10,)),))
    assert given["summed"] == Plan((Term(joy, 2.0, (10,)), Term(calm, -1.0, (10,))))
    assert given["each_its_layer"] == Plan((Term(joy, 2.0, (10,)), Term(calm, 2.0, (11,))))
