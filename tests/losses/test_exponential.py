"""The kernels' own exponentials against NumPy's."""

import math

import numba
import numpy as np
import pytest

from nemo_codert.losses.cpu.exponentials import exp_float32, exp_float64

pytestmark = pytest.mark.unit


@numba.njit
def exp_of(numbers: np.ndarray) -> np.ndarray:
    result = np.empty_like(numbers)
    for i in range(len(numbers)):
        result[i] = exp_float32(np.float32(numbers[i])) if numbers.itemsize == 4 else exp_float64(numbers[i])
    return result


@pytest.mark.parametrize("low, high", [(-87.3, 88.0), (-20.0, 20.0), (-1.0, 1.0), (-1e-6, 1e-6)])
def test_it_is_right_to_the_last_digit(low, high):
    numbers = np.linspace(low, high, 1_000_003).astype(np.float32)
    exact = np.exp(numbers.astype(np.float64))
    assert np.abs(exp_of(numbers) / exact - 1).max() < 9e-8  # half a unit in the last place is 6e-8; torch's: 7e-8
    assert exp_of(np.zeros(1, np.float32))[0] == 1


@pytest.mark.parametrize("low, high", [(-708.3, 709.0), (-20.0, 20.0), (-1.0, 1.0), (-1e-12, 1e-12)])
def test_float64s_too(low, high):
    numbers = np.linspace(low, high, 1_000_003)
    assert np.abs(exp_of(numbers) / np.exp(numbers) - 1).max() < 5e-16  # two units in the last place
    assert exp_of(np.zeros(1))[0] == 1
    assert exp_of(np.array([-708.4, -1e30, -math.inf])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("number", [-87.4, -88.0, -103.0, -1000.0, -1e30, -math.inf])
def test_what_is_no_normal_number_is_nothing(number):
    assert exp_of(np.array([number], np.float32))[0] == 0


def test_a_nan_stays_one():
    assert np.isnan(exp_of(np.full(9, np.nan, np.float32))).all()
    assert np.isnan(exp_of(np.full(9, np.nan))).all()
