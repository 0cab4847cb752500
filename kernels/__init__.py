"""CUDA sources of fftconv_cupy, compiled at run time; this module exists so that the folder installs as a package.

Each file includes only files above it in this list:

- ``types.cuh``, ``ptx.cuh``: number types; inline PTX, each wrapper with a C++ twin.
- ``dft.cuh``: discrete Fourier transforms of a few points in registers.
- ``layout.cuh``, ``roots.cuh``, ``block_fft.cuh``: which points a thread holds; the split of a row of 3 * 2^k points
  into three; the transform of one block through shared memory.
- ``params.cuh``, ``io.cuh``, ``row_io.cuh``: run-time parameters; loads and stores (lengths, alignment, gates,
  dtypes); those of a row of the convolution's arrays.
- ``spectrum.cuh``: a row's spectrum times that of the filter, or its conjugate, and the skip term.
- ``fftconv_fwd.cu``, ``fftconv_filter.cu``: kernels, the convolution (with pairing) and the filter spectrum.
- ``node_io.cuh``, ``slices.cuh``, ``row_fft.cuh``, ``sums.cuh``: what a block of a cluster reads of a row that they
  share; the exchange between them; the transform of a row by one block or by those of a cluster; sums over the rows of
  a channel, in a fixed order.
- ``fftconv_bwd.cu``, ``fftconv_filter_bwd.cu``, ``fftconv_reduce.cu``: their transposes, the gradients of the rows and
  of the filter, and the sum of the partial sums between them.

Rows cut into windows, for short filters:

- ``windows.cuh``: where a window lies in its row; ``fftconv_windows.cu``, ``fftconv_windows_bwd.cu``: outputs and
  gradients; ``fftconv_state.cu``: the state after a row.

Rows that outgrow a block:

- ``points.cuh``, ``tile.cuh``, ``taps.cuh``, ``pipeline.cuh``, ``item_points.cuh``, ``long_params.cuh``: what lies
  between the phases; columns of a row; taps as a row; the order of tasks and what each waits for; where its points
  lie; parameters.
- ``fftconv_long.cu``, ``fftconv_long_bwd.cu``: outputs, and gradients.
- ``fftconv_cluster.cu``: outputs of the shorter ones of these rows, in clusters, with the spectrum that
  ``fftconv_long.cu`` makes; their gradients are made by ``fftconv_bwd.cu``, and its sums turned by
  ``fftconv_long_bwd.cu``.

On tensor cores:

- ``mma.cuh``, ``mma_layout.cuh``, ``mma_fft.cuh``, ``mma_io.cuh``, ``mma_spectrum.cuh``: inline PTX; fragments;
  transforms; loads and stores; the spectrum.
- ``fftconv_mma_fwd.cu``, ``fftconv_mma_filter.cu``: the convolution, and the filter's spectrum in 16 bits.

Those of short depthwise convolutions:

- ``depthwise_params.cuh``, ``depthwise.cuh``: parameters; vectors, taps of any dtype, the activation.
- ``depthwise_fwd.cu``, ``depthwise_bwd.cu``: few taps, in registers: outputs, and all gradients in one pass.
- ``depthwise_mma.cu``: many taps of 16-bit arrays, on tensor cores: outputs, and the gradient of the rows.
- ``depthwise_tile.cuh``, ``depthwise_tile.cu``, ``depthwise_taps.cu``: anything else, in shared memory: outputs and the
  gradient of the rows; the gradients of taps and bias.
- ``depthwise_reduce.cu``, ``depthwise_state.cu``, ``depthwise_update.cu``: the sum of partial sums, the final state, a
  few steps of decoding.
"""
