"""Matrix products of compiled kernels against NumPy's: layouts, types, sizes of one, and whose routine it is."""

import ctypes
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from nemo_codert.losses.cpu import blas as blas_kernels
from nemo_codert.losses.cpu.blas import fill_product
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.unit

# What torch is linked to cannot be asked: SciPy's is.
SCIPYS = """
import ctypes, numba, pytest, scipy.linalg, torch

class Library:
    def __init__(self, name):
        raise OSError(name)

library, ctypes.CDLL = ctypes.CDLL, Library
from nemo_codert.losses.cpu import blas as blas_kernels
ctypes.CDLL = library
assert blas_kernels._address("sgemm") != blas_kernels._scipy_address("sgemm")
from tests.losses.test_additive_rnnt import assert_exact, loss_and_gradients, random_batch, reference
for batch in (random_batch(4, 40, 36, 300), random_batch(disagreement=200.0)):
    assert_exact(loss_and_gradients(batch, reduction="none"), reference(batch))
"""


@numba.njit
def fill(left: np.ndarray, right: np.ndarray, result: np.ndarray) -> None:
    fill_product(left, right, result)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(3, 4, 5), (1, 4, 5), (3, 1, 5), (3, 4, 1), (1, 1, 4), (1, 1, 1), (37, 257, 21)])
def test_factors_may_lie_in_rows_or_columns_or_be_parts_of_others(sizes, dtype):
    rows, terms, columns = sizes
    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal(shape).astype(dtype) for shape in ((rows, terms), (terms, columns)))
    wider = np.empty((rows + 2, terms + 3), dtype)
    wider[1:-1, 1:-2] = left
    for some_left in (left, np.asfortranarray(left), wider[1:-1, 1:-2]):
        for some_right in (right, np.asfortranarray(right), np.ascontiguousarray(right.T).T):
            result = np.full((rows + 1, columns + 2), 7, dtype)
            fill(some_left, some_right, result[:-1, 1:-1])
            expected = left.astype(np.float64) @ right
            np.testing.assert_allclose(
                result[:-1, 1:-1], expected, rtol=0, atol=1e-4 if dtype == np.float32 else 1e-12
            )
            assert (result[-1] == 7).all() and (result[:, [0, -1]] == 7).all()


def test_it_is_torchs():
    (path,) = (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")
    library = ctypes.CDLL(str(path))
    assert blas_kernels._address("sgemm") == ctypes.cast(library.sgemm_, ctypes.c_void_p).value


def test_where_torchs_cannot_be_asked_it_is_scipys():
    subprocess.run([sys.executable, "-c", SCIPYS], cwd=REPOSITORY, check=True)
