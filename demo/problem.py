"""The data, the model and numpy's own answer to compare with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

from demo.kernels import rbf

CLASS_COUNT = 10


@dataclass(frozen=True)
class Problem:
    """Least-squares Gaussian-process classification of 8x8 images, one against the rest for each digit."""

    x_train: np.ndarray  # (n, 64), intensities in [0, 1]
    x_test: np.ndarray  # (m, 64)
    targets: np.ndarray  # (n, 10), +1 for the digit, -1 for the others
    truth: np.ndarray  # (m,), the digits of the test images
    tile: int  # rows of a tile
    length_scale: float = 1.0
    noise: float = 0.01  # variance added to the diagonal

    @property
    def hyper(self) -> np.ndarray:
        """The two numbers that the kernels need, as a tensor: length scale and noise."""
        return np.array([self.length_scale, self.noise])

    @property
    def rows(self) -> list[slice]:
        """The training rows of each tile row; the last one may be shorter."""
        n = len(self.x_train)
        return [slice(start, min(start + self.tile, n)) for start in range(0, n, self.tile)]

    @property
    def tile_count(self) -> int:
        """Tiles in the lower triangle."""
        return len(self.rows) * (len(self.rows) + 1) // 2

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """Numpy's Cholesky factor of the covariance (n, n) and the digits (m,) that follow from it."""
        covariance = rbf(self.x_train, self.x_train, self.length_scale)
        covariance[np.diag_indices(len(covariance))] += self.noise
        factor = np.linalg.cholesky(covariance)
        weights = np.linalg.solve(covariance, self.targets)
        scores = rbf(self.x_test, self.x_train, self.length_scale) @ weights
        return factor, np.argmax(scores, axis=1)


def load(train_count: int, test_count: int, tile: int) -> Problem:
    """The digits in an order that is shuffled once and always the same.

    Raises ``ValueError`` for more than the 1,797 images there are, and for a tile that leaves a row alone (a
    tile is worked on in two halves).
    """
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    if min(train_count, test_count) < 1 or train_count + test_count > len(order):
        raise ValueError(f"{train_count} + {test_count} images asked for, the data set has {len(order)}")
    if tile < 2 or train_count % tile == 1:
        raise ValueError(f"tiles of {tile} rows leave a single row of {train_count}: take another size")
    train, test = order[:train_count], order[train_count : train_count + test_count]
    images = np.ascontiguousarray(digits.data / 16.0)
    return Problem(
        x_train=images[train],
        x_test=images[test],
        targets=np.where(digits.target[train][:, None] == np.arange(CLASS_COUNT), 1.0, -1.0),
        truth=digits.target[test],
        tile=tile,
    )
