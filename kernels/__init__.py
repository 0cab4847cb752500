"""CUDA sources of fftconv_cupy, compiled at run time; this module exists so that the folder installs as a package.

Each file includes only files above it in this list:

- ``types.cuh``, ``ptx.cuh``: number types; inline PTX, each wrapper with a C++ twin.
- ``dft.cuh``: discrete Fourier transforms of a few points in registers.
- ``layout.cuh``, ``block_fft.cuh``: which points a thread holds; the transform of one block through shared memory.
- ``params.cuh``, ``io.cuh``: run-time parameters; loads and stores (lengths, alignment, gates, dtypes).
- ``spectrum.cuh``: a row's spectrum times that of the filter, or its conjugate, and the skip term.
- ``fftconv_fwd.cu``, ``fftconv_filter.cu``: kernels, the convolution (with pairing) and the filter spectrum.
- ``fftconv_bwd.cu``, ``fftconv_filter_bwd.cu``, ``fftconv_reduce.cu``: their transposes, the gradients of the rows and
  of the filter, and the sum of the partial sums between them.

Those of short depthwise convolutions:

- ``depthwise_params.cuh``, ``depthwise.cuh``: parameters; vectors, taps of any dtype, the activation.
- ``depthwise_fwd.cu``, ``depthwise_bwd.cu``: few taps, in registers: outputs, and all gradients in one pass.
- ``depthwise_tile.cuh``, ``depthwise_tile.cu``, ``depthwise_taps.cu``: anything else, in shared memory: outputs and the
  gradient of the rows; the gradients of taps and bias.
- ``depthwise_reduce.cu``, ``depthwise_state.cu``, ``depthwise_update.cu``: the sum of partial sums, the final state, a
  few steps of decoding.
"""
