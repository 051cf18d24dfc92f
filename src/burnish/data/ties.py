"""Rows that belong together, from pairs of them."""

from __future__ import annotations

import numpy as np


def clusters_of(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """int64 [n]: for each of so many rows the smallest row it is tied to by these pairs."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ties = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    _, number = connected_components(ties, directed=False)
    smallest = np.full(count, count, np.int64)
    np.minimum.at(smallest, number, np.arange(count))
    return smallest[number]
