"""The command line of fftconv_cupy: one module a command, options shared by them in ``options.py``."""

from __future__ import annotations

import click

from fftconv_cupy._version import __version__
from fftconv_cupy.cli.bench import bench
from fftconv_cupy.cli.cache import cache
from fftconv_cupy.cli.options import Group
from fftconv_cupy.cli.verify import verify


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fftconv-cupy")
def main() -> None:
    """FFT convolutions on the GPU: check this machine, time it, look after the kernel cache."""


main.add_command(verify)
main.add_command(bench)
main.add_command(cache)
