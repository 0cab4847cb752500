"""``fftconv verify``: does fftconv compute right results on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from fftconv_cupy.archs import ARCHS, ArchLimits, arch_limits
from fftconv_cupy.benchmarks import environment, verification
from fftconv_cupy.benchmarks.checks import Finding
from fftconv_cupy.benchmarks.places import CPU, Place
from fftconv_cupy.cli import options
from fftconv_cupy.devices import device_limits
from fftconv_cupy.errors import FFTConvError
from fftconv_cupy.problem import CPU_DTYPES, DTYPES, PRECISIONS

_LARGEST = ARCHS["sm_90"]  # the CPU's cases are those of a GPU that computes every size
_FAILURES_SHOWN = 20


@click.command()
@click.option("--quick", "level", flag_value="quick", help="Each FFT size once: seconds, once kernels are compiled.")
@click.option("--full", "level", flag_value="full", help="Each FFT size with each mode, dtype and gates: minutes.")
@options.device
@options.dtypes(CPU_DTYPES)
@options.precisions("all")
@options.json_file
@click.option("--require-gpu", is_flag=True, help=f"Exit with {options.EXIT_NO_GPU} where there is no GPU.")
@click.option(
    "--arch",
    "archs",
    type=click.Choice(list(ARCHS)),
    multiple=True,
    help="Compile for this architecture too, present or not; may be repeated.",
)
@click.pass_context
def verify(
    ctx: click.Context,
    level: str | None,
    device: int | None,
    dtypes: tuple[str, ...],
    precisions: tuple[str, ...],
    json_path: Path | None,
    require_gpu: bool,
    archs: tuple[str, ...],
) -> None:
    """Check this machine: every result against float64, on every GPU, or on the CPU where there is none.

    Sizes, modes, dtypes, gates and odd shapes are compared with float64, outputs and gradients; outputs lie between
    guards that must stay untouched; repeated and concurrent calls must give the same bits; a NaN must stay in its row.

    Exits with 0 when all checks passed, with 1 when one failed.
    """
    started = time.perf_counter()
    gpus, reason = environment.gpu_count()
    if require_gpu and not gpus:
        click.echo(f"No GPU: {reason}")
        ctx.exit(options.EXIT_NO_GPU)
    if device is not None and device >= gpus:
        raise click.BadParameter(f"cuda:{device} is not there: {reason or f'{gpus} GPU(s)'}", param_hint="--device")
    chosen = _Chosen(level or "normal", dtypes, precisions or PRECISIONS)
    ordinals = [CPU] if not gpus else list(range(gpus)) if device is None else [device]

    described = environment.software()
    _show(described)
    findings: list[Finding] = []
    if not gpus:
        click.echo(f"\nNo GPU is checked: {reason}\nThe NumPy backend is, which serves arrays on the CPU.")
    for ordinal in ordinals:
        findings += _check_place(Place(ordinal), chosen, described)
    for arch in archs:
        findings += _check_arch(arch, chosen, described)

    click.echo("\n" + _table(findings))
    closing = _closing(findings, gpus=0 if ordinals == [CPU] else len(ordinals), seconds=time.perf_counter() - started)
    _show_failures(findings)
    click.echo(closing)
    passed = all(finding.ok for finding in findings)
    if json_path is not None:
        report = {
            "environment": {**described, "commit": environment.commit(), "command": environment.command()},
            "passed": passed,
            "gpus_checked": 0 if ordinals == [CPU] else len(ordinals),
            "summary": closing,
            "findings": [{**asdict(finding), "ok": finding.ok} for finding in findings],
        }
        options.write_json(json_path, report)
    ctx.exit(0 if passed else options.EXIT_MISMATCH)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What is checked: level, dtypes (none for all) and precisions."""

    level: str
    dtypes: tuple[str, ...]
    precisions: tuple[str, ...]

    def jobs(self, allowed: tuple[str, ...], place: Place, limits: ArchLimits) -> list[Any]:
        """Return the checks for a place that computes some dtypes."""
        dtypes = [dtype for dtype in allowed if dtype in (self.dtypes or allowed)]
        return verification.jobs_for(self.level, dtypes, place, limits, self.precisions)


def _check_place(place: Place, chosen: _Chosen, described: dict[str, Any]) -> list[Finding]:
    """Check one GPU or the CPU; what the GPU is goes into ``described``."""
    limits = _LARGEST
    if place.is_gpu:
        gpu = environment.gpu(place.ordinal)
        described.setdefault("gpus", []).append(gpu)
        _show({place.name: ", ".join(f"{name} {value}" for name, value in gpu.items())})
        try:
            limits = device_limits(place.ordinal)
        except FFTConvError as error:
            return [Finding("device", place.name, "", "", gpu["gpu"], 1, 0, str(error))]
    jobs = chosen.jobs(DTYPES if place.is_gpu else CPU_DTYPES, place, limits)
    return _with_progress(place.name, verification.run(jobs, place), len(jobs))


def _check_arch(arch: str, chosen: _Chosen, described: dict[str, Any]) -> list[Finding]:
    """Compile the kernels of the checks for one architecture, where NVRTC is installed."""
    specs = verification.specs_for(chosen.jobs(DTYPES, Place(CPU), arch_limits(arch)), arch)
    if "nvrtc" not in described:
        click.echo(f"\nNothing is compiled for {arch}: {described['missing']}")
        return []
    return _with_progress(f"compiling for {arch}", verification.compile_all(specs, arch), len(specs))


def _with_progress(label: str, findings: Iterable[Finding], length: int) -> list[Finding]:
    with click.progressbar(findings, length=length, label=label, show_pos=True) as bar:
        return list(bar)


def _show(facts: dict[str, Any]) -> None:
    width = max(map(len, facts))
    for name, value in facts.items():
        click.echo(f"{name.ljust(width)}  {'not installed' if value is None else value}")


def _table(findings: list[Finding]) -> str:
    """Return a row for each check, mode, dtype and precision, with the case that is worst against its bound."""
    groups: dict[tuple[str, str, str, str, str], list[Finding]] = {}
    for finding in findings:
        key = (finding.place, finding.check, finding.mode, finding.dtype, finding.precision)
        groups.setdefault(key, []).append(finding)
    checks = list(dict.fromkeys(finding.check for finding in findings))
    rows = []
    for key in sorted(groups, key=lambda key: (key[0], checks.index(key[1]), key)):
        members = groups[key]
        worst = max(members, key=_excess)
        bad = sum(not finding.ok for finding in members)
        verdict = f"{bad} FAILED" if bad else "ok"
        rows.append((*key, str(len(members)), f"{worst.error:.3g}", f"{worst.bound:.3g}", verdict))
    head = ("place", "check", "mode", "dtype", "precision", "cases", "worst error", "its bound", "")
    return options.table(head, rows)


def _show_failures(findings: list[Finding]) -> None:
    failures = [finding for finding in findings if not finding.ok]
    for finding in failures[:_FAILURES_SHOWN]:
        click.echo(f"FAILED {finding.check} on {finding.place}: {finding.label}: {finding.detail or finding.error}")
    if len(failures) > _FAILURES_SHOWN:
        click.echo(f"... and {len(failures) - _FAILURES_SHOWN} more; --json lists all")


def _closing(findings: list[Finding], *, gpus: int, seconds: float) -> str:
    failures = [finding for finding in findings if not finding.ok]
    what = f"{gpus} GPU(s)" if gpus else "the NumPy backend; no GPU was checked"
    if failures:
        return f"FAIL: {len(failures)} of {len(findings)} checks on {what}; first: {failures[0].label}. {seconds:.1f} s"
    worst = max((_excess(finding) for finding in findings if finding.bound), default=0.0)
    return f"PASS: {len(findings)} checks on {what}; worst error {worst:.2f} of its bound. {seconds:.1f} s"


def _excess(finding: Finding) -> float:
    """Return the error in units of its bound; a failed check without a number counts as infinite."""
    if not finding.ok:
        return float("inf")
    return finding.error / finding.bound if finding.bound else 0.0
