"""Tile kernels: the functions that sub workers run.

Each kernel is a sub callable ``fn(args)``: it reads and writes the tensors it was given, in place, and
returns nothing. All matrices are float64 in C order. Nothing here knows where it runs: ``cov``, ``solve``,
``update`` and ``predict`` run on the local sub workers, the four factorisation kernels on the sub workers
inside the remote sessions.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import solve_triangular


def rbf(left: np.ndarray, right: np.ndarray, length_scale: float) -> np.ndarray:
    """Squared-exponential covariance ``(m, n)`` of the rows of ``left (m, d)`` and ``right (n, d)``."""
    norms = np.sum(left * left, axis=1)[:, None] + np.sum(right * right, axis=1)[None, :]
    distance2 = np.maximum(norms - 2.0 * (left @ right.T), 0.0)
    return np.exp(distance2 * (-0.5 / length_scale**2))


def cov(args) -> None:
    """One covariance tile. Tensors: rows (m, d), columns (n, d), [length scale, noise], out (m, n).

    Scalar 0 is 1 for a tile on the diagonal, which also gets the noise variance.
    """
    left, right, hyper, out = (np.asarray(args.tensor(i)) for i in range(4))
    out[...] = rbf(left, right, hyper[0])
    if args.scalar(0):
        out[np.diag_indices(len(out))] += hyper[1]


def potrf(args) -> None:
    """Factor a diagonal tile in place. Tensors: a (n, n) → its lower factor, zeros above the diagonal.

    Raises ``numpy.linalg.LinAlgError`` when the tile is not positive definite.
    """
    a = np.asarray(args.tensor(0))
    a[...] = np.linalg.cholesky(a)


def trsm(args) -> None:
    """Some rows of a tile below the diagonal. Tensors: x (r, n) → x · l⁻ᵀ, l (n, n) lower."""
    x, lower = np.asarray(args.tensor(0)), np.asarray(args.tensor(1))
    x[...] = solve_triangular(lower, x.T, lower=True, check_finite=False).T


def syrk(args) -> None:
    """Some rows of a diagonal tile. Tensors: c (r, n), a (r, k), b (n, k); c −= a · bᵀ up to the diagonal.

    ``a`` is the rows of ``b`` that start at scalar 0; what lies right of the diagonal block is left alone.
    """
    c, a, b = (np.asarray(args.tensor(i)) for i in range(3))
    end = args.scalar(0) + len(c)
    c[:, :end] -= a @ b[:end].T


def gemm(args) -> None:
    """Some rows of any other tile. Tensors: c (r, n), a (r, k), b (n, k); c −= a · bᵀ."""
    c, a, b = (np.asarray(args.tensor(i)) for i in range(3))
    c -= a @ b.T


def solve(args) -> None:
    """Solve with a diagonal tile. Tensors: y (n, t) in place, l (n, n). Scalar 0: 1 solves with lᵀ."""
    y, lower = np.asarray(args.tensor(0)), np.asarray(args.tensor(1))
    y[...] = solve_triangular(lower, y, lower=True, trans=args.scalar(0), check_finite=False)


def update(args) -> None:
    """Take a solved block out of another. Tensors: y (n, t), l, x (m, t); y −= l · x. Scalar 0: 1 uses lᵀ."""
    y, tile, x = (np.asarray(args.tensor(i)) for i in range(3))
    y -= (tile.T if args.scalar(0) else tile) @ x


def predict(args) -> None:
    """Class of each test image. Tensors: images (m, d), train (n, d), hyper, out (m,) int64, weights….

    The weights come as one tensor for each tile row; scalar 0 counts them.
    """
    images, train, hyper, out = (np.asarray(args.tensor(i)) for i in range(4))
    weights = np.concatenate([np.asarray(args.tensor(4 + i)) for i in range(args.scalar(0))])
    out[...] = np.argmax(rbf(images, train, hyper[0]) @ weights, axis=1)
