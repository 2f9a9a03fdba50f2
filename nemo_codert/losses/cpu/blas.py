"""Matrix products for compiled kernels, by the BLAS that torch is linked to (else SciPy's), on the calling thread.

A kernel calls BLAS from several threads at once; inside such a call MKL starts no threads of its own, SciPy's BLAS
may. torch's own products are not used: its settings may reduce them to bfloat16. Imports numpy, numba, SciPy,
`compile_cache`, `torch_symbols`.
"""

import ctypes

import numpy as np
from numba import types

from nemo_codert.losses.cpu.compile_cache import callee
from nemo_codert.losses.cpu.torch_symbols import PREFIX, offer, torch_functions

_LETTERS = np.frombuffer(b"NT", np.uint8)  # BLAS's letters for a matrix as it stands and transposed


def _address(name: str) -> int:
    """Return the address of a Fortran routine, of torch's BLAS or SciPy's."""
    found = torch_functions([f"{name}_"])
    return ctypes.cast(found[0], ctypes.c_void_p).value if found else _scipy_address(name)


def _scipy_address(name: str) -> int:
    """Return the address of a routine of SciPy's BLAS, which exports capsules in place of a library's symbols."""
    from scipy.linalg import cython_blas

    capsule = cython_blas.__pyx_capi__[name]
    name_of, pointer_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return pointer_of(capsule, name_of(capsule))


for _name in ("sgemm", "dgemm"):
    offer(_name, _address(_name))
_signature = types.void(*[types.voidptr] * 13)
_sgemm = types.ExternalFunction(f"{PREFIX}sgemm", _signature)
_dgemm = types.ExternalFunction(f"{PREFIX}dgemm", _signature)


@callee
def _layout(matrix: np.ndarray) -> tuple[int, int]:
    """Return 0 for contiguous rows or 1 for contiguous columns, and their distance in elements."""
    transposed = matrix.strides[1] != matrix.itemsize
    apart = matrix.strides[1] if transposed else matrix.strides[0]
    return int(transposed), max(apart // matrix.itemsize, matrix.shape[0] if transposed else matrix.shape[1])


@callee
def fill_product(left: np.ndarray, right: np.ndarray, result: np.ndarray) -> None:
    """Fill result [I, J] with left [I, K] @ right [K, J]; all float32 or all float64, no size 0.

    Rows or columns of each factor are contiguous, and rows of the result.
    """
    # Fortran's matrices have contiguous columns: the call computes the transposed product.
    (turned_left, apart_left), (turned_right, apart_right) = _layout(left), _layout(right)
    numbers, factors = np.empty(6, np.int32), np.empty(2, result.dtype)
    numbers[0], numbers[1], numbers[2] = result.shape[1], result.shape[0], left.shape[1]
    numbers[3], numbers[4] = apart_right, apart_left
    numbers[5] = max(result.strides[0] // result.itemsize, result.shape[1])
    factors[0], factors[1] = 1.0, 0.0  # alpha, of the product, and beta, of the old contents of the result
    arguments = (
        _LETTERS[turned_right:].ctypes,
        _LETTERS[turned_left:].ctypes,
        numbers.ctypes,
        numbers[1:].ctypes,
        numbers[2:].ctypes,
        factors.ctypes,
        right.ctypes,
        numbers[3:].ctypes,
        left.ctypes,
        numbers[4:].ctypes,
        factors[1:].ctypes,
        result.ctypes,
        numbers[5:].ctypes,
    )
    if result.itemsize == 4:
        _sgemm(*arguments)
    else:
        _dgemm(*arguments)
