"""Exponentials for compiled kernels: polynomials, so that a loop over them becomes vector instructions.

Numba's own `exp` calls the C library for one number at a time. Cody and Waite's reduction to r, at most ln 2 / 2 from
0, with the polynomial of Moshier's Cephes library for float32 (`expf`, netlib.org/cephes) and Taylor's for float64.
Imports numpy, numba.
"""

import math

import numba
import numpy as np

f32 = np.float32

LOG2_E = f32(1.4426950408889634)
LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)
TO_WHOLE = f32(1.5 * 2**23)  # adding and subtracting it rounds to a whole number, the last bits of the sum
C0, C1, C2 = f32(1.9875691500e-4), f32(1.3981999507e-3), f32(8.3334519073e-3)
C3, C4, C5 = f32(4.1665795894e-2), f32(1.6666665459e-1), f32(5.0000001201e-1)
ONE, NOTHING = f32(1.0), f32(0.0)
LEAST = f32(-87.3)  # smallest argument whose exponential is a normal number
BIAS, MANTISSA_BITS = np.int32(127), np.int32(23)

LOG2_E_64, LN2_HIGH_64, LN2_LOW_64 = math.log2(math.e), 6.93145751953125e-1, 1.42860682030941723212e-6
TO_WHOLE_64, LEAST_64 = 1.5 * 2**52, -708.3
BIAS_64, MANTISSA_BITS_64 = np.int64(1023), np.int64(52)
D13, D12, D11, D10, D9, D8, D7, D6, D5, D4, D3 = (1 / math.factorial(n) for n in range(13, 2, -1))


@numba.njit(nogil=True, fastmath={"contract"})
def exp_float32(x: np.float32) -> np.float32:
    """Return e^x of a float32 x up to 88, with a relative error of 9e-8 (torch's: 7e-8); 0 below -87.3, NaN for NaN.

    Undefined above 88: callers stay below `UNSHIFTED` of `additive_float64`.
    """
    sum_ = x * LOG2_E + TO_WHOLE
    n = sum_ - TO_WHOLE
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = ((((C0 * r + C1) * r + C2) * r + C3) * r + C4) * r + C5
    p = (p * (r * r) + r) + ONE
    bits = f32(sum_).view(np.int32)
    power = np.int32((bits + BIAS) << MANTISSA_BITS).view(f32)  # 2^n: the shift drops all other bits
    return NOTHING if x < LEAST else p * power


@numba.njit(nogil=True, fastmath={"contract"})
def exp_float64(x: float) -> float:
    """Return e^x of a float64 x up to 709, with a relative error of 4e-16; 0 below -708.3, NaN for NaN.

    Undefined above 709.
    """
    sum_ = x * LOG2_E_64 + TO_WHOLE_64
    n = sum_ - TO_WHOLE_64
    r = (x - n * LN2_HIGH_64) - n * LN2_LOW_64
    p = ((((D13 * r + D12) * r + D11) * r + D10) * r + D9) * r + D8
    p = (((((p * r + D7) * r + D6) * r + D5) * r + D4) * r + D3) * r + 0.5
    p = (p * (r * r) + r) + 1.0
    bits = np.float64(sum_).view(np.int64)
    power = np.int64((bits + BIAS_64) << MANTISSA_BITS_64).view(np.float64)
    return 0.0 if x < LEAST_64 else p * power
