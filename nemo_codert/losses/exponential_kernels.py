"""The float32 exponential for compiled kernels: a polynomial, so that a loop over it becomes vector instructions.

Numba's own is the C library's, one number at a time. Cody and Waite's reduction with the polynomial of Moshier's
Cephes library (`expf`, netlib.org/cephes). Imports numpy, numba.
"""

import numba
import numpy as np

f32 = np.float32

LEAST = f32(-87.3)  # of the arguments whose exponential is a normal number
LOG2_E, LN2_HIGH, LN2_LOW = f32(1.4426950408889634), f32(0.693359375), f32(-2.12194440e-4)
TO_WHOLE = f32(1.5 * 2**23)  # added and taken off, leaves the nearest whole number: the last bits of the sum
C0, C1, C2 = f32(1.9875691500e-4), f32(1.3981999507e-3), f32(8.3334519073e-3)
C3, C4, C5 = f32(4.1665795894e-2), f32(1.6666665459e-1), f32(5.0000001201e-1)
ONE, NOTHING = f32(1.0), f32(0.0)
BIAS, MANTISSA_BITS = np.int32(127), np.int32(23)


@numba.njit(nogil=True, fastmath={"contract"})
def exp_float32(x: np.float32) -> np.float32:
    """e^x of a float32 x up to 88, within 9e-8 of it (torch's: 7e-8); 0 below -87.3, NaN for NaN.

    Above 88 it may be anything: callers stay below `UNSHIFTED` of `additive_precision`.
    """
    sum_ = x * LOG2_E + TO_WHOLE
    n = sum_ - TO_WHOLE
    r = (x - n * LN2_HIGH) - n * LN2_LOW  # x - n ln 2, at most ln 2 / 2 from 0
    p = ((((C0 * r + C1) * r + C2) * r + C3) * r + C4) * r + C5
    p = (p * (r * r) + r) + ONE
    bits = f32(sum_).view(np.int32)
    power = np.int32((bits + BIAS) << MANTISSA_BITS).view(f32)  # 2^n: what else is in the bits is shifted out
    return NOTHING if x < LEAST else p * power
