"""What is remembered takes no more than it may, and who was not asked for the longest goes."""

from __future__ import annotations

import random

import pytest

from steerfast.serving.remembered import Remembered


@pytest.mark.parametrize("seed", range(5))
def test_it_is_a_list_in_order_of_use_cut_where_the_room_ends(seed):
    chance, known = random.Random(seed), []  # (key, value, size), the last asked for at the end
    here: Remembered[int, str] = Remembered(20)
    for step in range(500):
        key = chance.randrange(12)
        if chance.random() < 0.5:
            found = [one for one in known if one[0] == key]
            assert here.get(key) == (found[0][1] if found else None)
            known = [one for one in known if one[0] != key] + found
        else:
            size = chance.randrange(1, 25)
            here.put(key, str(step), size)
            known = [one for one in known if one[0] != key] + [(key, str(step), size)]
            while sum(one[2] for one in known) > 20:
                known.pop(0)
        assert here.bytes == sum(one[2] for one in known) <= 20
