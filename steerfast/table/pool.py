"""Pool: places of a fixed tensor, shared by equal contents and counted."""

from __future__ import annotations

from collections.abc import Collection, Iterable


class Pool:
    """``capacity`` places. Equal keys share a place, which is free again when all have given it back; one that somebody
    holds is never written again."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = list(range(capacity - 1, -1, -1))
        self._places: dict[bytes, int] = {}
        self._holders: dict[int, int] = {}
        self._keys: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """Places that nobody holds."""
        return len(self._free)

    def missing(self, keys: Iterable[bytes], among: Collection[int] | None = None) -> int:
        """How many new places these keys would take, if only the places ``among`` (None: all) stayed."""
        places = [self._places.get(key) for key in set(keys)]
        return sum(place is None or (among is not None and place not in among) for place in places)

    def take(self, keys: Iterable[bytes]) -> tuple[list[int], dict[int, int]]:
        """The places of these keys, one holder more for each; and {place: which of the keys} of those that are new, and to be
        written. IndexError where there are not enough; see ``free`` and ``missing``."""
        places, new = [], dict[int, int]()
        for number, key in enumerate(keys):
            place = self._places.get(key)
            if place is None:
                place = self._free.pop()
                self._places[key], self._keys[place], self._holders[place] = place, key, 0
                new[place] = number
            self._holders[place] += 1
            places.append(place)
        return places, new

    def give_back(self, place: int) -> None:
        """One holder less."""
        self._holders[place] -= 1
        if self._holders[place] == 0:
            del self._places[self._keys.pop(place)], self._holders[place]
            self._free.append(place)
