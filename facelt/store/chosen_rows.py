"""Some rows of an array that may be larger than memory. N rows, M chosen ones, D feature."""

import numpy as np


class ChosenRows:
    """Chosen rows of an array or of chosen rows, copied when sliced."""

    def __init__(self, value_ND: "np.ndarray | ChosenRows", position_M: np.ndarray) -> None:
        nested = isinstance(value_ND, ChosenRows)
        self._value_ND = value_ND._value_ND if nested else value_ND
        self._position_M = value_ND._position_M[position_M] if nested else position_M
        self.shape = (len(self._position_M), self._value_ND.shape[1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._value_ND[self._position_M[rows]]
