from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

def build_info() -> dict[str, Any]: ...

class Router:
    def __init__(self, seats: int) -> None: ...
    @property
    def seats(self) -> int: ...
    def set(
        self,
        seat: int,
        starts: list[int],
        slots: list[int],
        gain_at: list[int],
        gains: list[float],
    ) -> None: ...
    def fill(
        self, seats: ArrayLike, first: ArrayLike, count: ArrayLike, rows: NDArray[np.int32]
    ) -> int: ...
