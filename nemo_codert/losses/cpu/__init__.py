"""Compiled CPU kernels of the RNN-T losses. Imported only where a loss is computed on a CPU; needs Numba."""
