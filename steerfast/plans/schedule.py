"""Schedule: how strongly a plan acts, token by token: the row gain g as a function of t - P."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from steerfast.plans.fields import number, whole

MAX_POINTS = 256  # of one schedule; what the device holds per request
MAX_OFFSET = 2**31  # positions are 32-bit integers on the device
MAX_GAIN = (2 - 2**-23) * 2.0**127  # the greatest float32
_SHORTEST_STEP = 1 / 8  # of a half-life: how finely ``decay`` is drawn


@dataclass(frozen=True)
class Schedule:
    """Piecewise-linear gain: g(t) goes through ``points`` (t - P, gain) and keeps its ends' values.

    t - P is 0 at the first generated token and -1 at the last of the prompt. The gain multiplies
    what all terms add (the chord, of a rotation); the plan's finish follows, unscaled. Where it is 0 the row is not steered.

    Raises ValueError for no points, more than MAX_POINTS, offsets that do not ascend, or gains that are not finite.
    """

    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        points = tuple(
            (whole("a schedule's offset t - P", offset), number("a schedule's gain", gain))
            for offset, gain in self.points
        )
        if not 1 <= len(points) <= MAX_POINTS:
            raise ValueError(f"a schedule has 1 to {MAX_POINTS} points, got {len(points)}")
        if any(abs(offset) > MAX_OFFSET for offset, _ in points):
            raise ValueError(f"a schedule's offsets are within {MAX_OFFSET} of the prompt's end")
        if any(abs(gain) > MAX_GAIN for _, gain in points):
            raise ValueError(f"a schedule's gains must fit float32, up to {MAX_GAIN:.4g}")
        if any(one[0] >= two[0] for one, two in pairwise(points)):
            raise ValueError(
                f"a schedule's offsets must ascend, got {[offset for offset, _ in points][:12]}"
            )
        object.__setattr__(self, "points", points)

    def at(self, offset: int) -> float:
        """The gain at t - P = offset, in float64."""
        place = bisect_right(self.points, (offset, math.inf))
        if place == 0:
            return self.points[0][1]
        start, before = self.points[place - 1]
        if place == len(self.points):
            return before
        stop, after = self.points[place]
        return before + (after - before) * ((offset - start) / (stop - start))

    @classmethod
    def window(cls, start: int, stop: int, gain: float = 1.0) -> Schedule:
        """``gain`` where start <= t - P < stop, nothing elsewhere."""
        start, stop = whole("a window's start", start), whole("a window's stop", stop)
        if start >= stop:
            raise ValueError(f"window({start}, {stop}) is empty; it goes from start to before stop")
        edges = {start - 1: 0.0, start: gain, stop - 1: gain, stop: 0.0}
        return cls(tuple(edges.items()))

    @classmethod
    def ramp(cls, start: int, stop: int, low: float = 0.0, high: float = 1.0) -> Schedule:
        """From ``low`` at t - P = start, and before, in a straight line to ``high`` at stop, and after."""
        return cls(((whole("a ramp's start", start), low), (whole("a ramp's stop", stop), high)))

    @classmethod
    def decay(cls, half_life: float, start: int = 0, floor: float = 0.0) -> Schedule:
        """1 up to t - P = start, then halved every ``half_life`` tokens, until less than 1/1000 above ``floor``.

        floor + (1 - floor) * 2^(-(t - P - start) / half_life), exact at every token for a half-life up to 8 and
        at every eighth of it beyond, straight lines between.
        """
        half_life, start = number("a half-life", half_life), whole("a decay's start", start)
        floor = number("a decay's floor", floor)
        if not half_life > 0:
            raise ValueError(f"a half-life is a positive number of tokens, got {half_life}")
        step = max(1, math.floor(half_life * _SHORTEST_STEP))
        count = math.ceil(10 * half_life / step)  # 2^-10 is left at the end
        curve = [
            (start + at, floor + (1 - floor) * 2 ** (-at / half_life))
            for at in range(0, (count + 1) * step, step)
        ]
        return cls((*curve, (curve[-1][0] + step, floor)))

    @classmethod
    def table(cls, gains: Iterable[float], start: int = 0) -> Schedule:
        """A gain for each token from t - P = start on; the first holds before, the last after."""
        first = whole("a table's start", start)
        return cls(tuple((first + index, gain) for index, gain in enumerate(gains)))
