"""Products of matrices as BLAS does them best: those of few rows in pieces that it takes as they are.

BLAS packs its operands first, which costs as much as the product itself where rows are few. For small products OpenBLAS
has kernels, on some processors, that pack nothing; larger ones can be cut into such. The bits depend on the pieces, and
the pieces on the shapes alone.
"""

import numpy as np

from .storage import Array

Pieces = tuple[slice, ...]


def pieces(size: int, others: int, largest: int, tiles: tuple[int, ...]) -> Pieces:
    """[0, size) in pieces for which `others` multiplications each are at most `largest` together.

    Each is of whole tiles, of the first of `tiles` of which one fits. None, (), where it need not be cut, or none fits.
    """
    most = largest // others
    width = next((most // tile * tile for tile in tiles if tile <= most), size)
    if width >= size:
        return ()
    return tuple(slice(start, min(start + width, size)) for start in range(0, size, width))


def multiply(x: Array, y: Array, z: Array, by: Pieces = ()) -> None:
    """z = x y, matrices, z contiguous: as a whole, or some rows of x and z at a time.

    The whole by `dot`: a call of it takes half the time of one of `matmul`.
    """
    if not by:
        x.dot(y, z)
    for piece in by:
        np.matmul(x[piece], y, out=z[piece])
