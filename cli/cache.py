"""``fftconv cache``: the compiled kernels on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import click

from fftconv_cupy import cache as store
from fftconv_cupy.archs import ArchLimits, arch_limits
from fftconv_cupy.benchmarks import environment
from fftconv_cupy.cli import options
from fftconv_cupy.compile import precompile
from fftconv_cupy.devices import device_limits
from fftconv_cupy.kernel_matrix import iter_kernel_specs
from fftconv_cupy.source import KernelSpec


@click.group(cls=options.Group)
def cache() -> None:
    """Look after the compiled kernels on disk."""


@cache.command()
def path() -> None:
    """Print the folder: FFTCONV_CACHE_DIR, else fftconv_cupy in the platform's cache folder."""
    click.echo(store.directory())


@cache.command(name="list")
def list_entries() -> None:
    """Print the compiled kernels: architecture, FFT size, entry, bytes, and when each was written."""
    entries = store.entries()
    if entries:
        rows = [
            (
                entry.key.arch,
                str(entry.key.fft_size),
                entry.key.entry,
                str(entry.size),
                f"{datetime.fromtimestamp(entry.modified).astimezone():%Y-%m-%d %H:%M:%S}",
            )
            for entry in entries
        ]
        click.echo(options.table(("arch", "fft size", "entry", "bytes", "written"), rows))
    total = sum(entry.size for entry in entries) / 2**20
    click.echo(f"{_count(len(entries))}, {total:.1f} MiB, in {store.directory()}")


@cache.command()
def clear() -> None:
    """Delete the compiled kernels; other files in the folder stay."""
    click.echo(f"deleted {_count(store.clear())} in {store.directory()}")


@cache.command()
@click.option(
    "--arch",
    "archs",
    multiple=True,
    metavar="sm_XX",
    help="Compile for this architecture; may be repeated.  [default: those of the GPUs here]",
)
@click.option(
    "--fft-size",
    "fft_sizes",
    multiple=True,
    type=click.IntRange(min=2),
    metavar="N",
    help="Only kernels of this FFT size; may be repeated.  [default: all]",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=None,
    metavar="N",
    help="Compilations at a time.  [default: all cores]",
)
def warm(archs: tuple[str, ...], fft_sizes: tuple[int, ...], jobs: int | None) -> None:
    """Compile ahead into the cache, also for GPUs that are not here; none is needed.

    Without --fft-size these are all kernels of an architecture, but for those of a few gradients only: one to two
    thousand, and one to three seconds each.
    """
    limits = [arch_limits(arch) for arch in archs] or _gpus_here()
    wanted = [
        (spec, gpu.arch)
        for gpu in dict.fromkeys(limits)
        for spec in iter_kernel_specs(gpu, fft_sizes=fft_sizes or None)
    ]
    with click.progressbar(_compiled(wanted, jobs or os.cpu_count() or 1), len(wanted), label="compiling") as bar:
        paths = list(bar)
    unwritten = paths.count(None)
    if unwritten:
        raise click.ClickException(f"{_count(unwritten)} of {len(paths)} could not be written to {store.directory()}")
    click.echo(f"{_count(len(paths))} ready in {store.directory()}")


def _gpus_here() -> list[ArchLimits]:
    """Return the limits of each GPU, whose architecture may be one that `ARCHS` does not list."""
    count, reason = environment.gpu_count()
    if not count:
        raise click.UsageError(
            f"There is no GPU to compile for ({reason}); name one with --arch, such as --arch sm_90."
        )
    return [device_limits(device) for device in range(count)]


def _compiled(wanted: list[tuple[KernelSpec, str]], jobs: int) -> Iterator[Path | None]:
    """Compile in ``jobs`` threads, since NVRTC works without Python's lock; the first error ends it."""
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda item: precompile(*item), wanted)


def _count(number: int) -> str:
    return f"{number} kernel{'' if number == 1 else 's'}"
