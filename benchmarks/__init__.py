"""Benchmarks of fftconv_cupy and of other ways to convolve: problems, timing, baselines, records and targets."""
