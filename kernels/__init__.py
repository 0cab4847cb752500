"""CUDA sources of fftconv_cupy, compiled at run time; this module exists so that the folder installs as a package.

Each file includes only files above it in this list:

- ``types.cuh``, ``ptx.cuh``: number types; inline PTX, each wrapper with a C++ twin.
- ``dft.cuh``: discrete Fourier transforms of a few points in registers.
- ``layout.cuh``, ``block_fft.cuh``: which points a thread holds; the transform of one block through shared memory.
- ``params.cuh``, ``io.cuh``: run-time parameters; loads and stores (lengths, alignment, gates, dtypes).
- ``fftconv_fwd.cu``, ``fftconv_filter.cu``: the kernels themselves, the convolution (with pairing and the skip term)
  and the filter spectrum.
"""
