"""Runs the kernels' own sources on the CPU; see ``harness.py`` and ``cuda_host.h``."""
