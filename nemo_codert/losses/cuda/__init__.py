"""Numba-CUDA kernels of the RNN-T losses. Imported only where a loss is computed on a GPU."""
