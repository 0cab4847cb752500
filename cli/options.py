"""Options that more than one command has, and how commands report errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from fftconv_cupy.benchmarks.storage import finite
from fftconv_cupy.errors import FFTConvError
from fftconv_cupy.problem import PRECISIONS

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_MISMATCH = 1
EXIT_NO_GPU = 3


class Group(click.Group):
    """A group whose commands show the library's own errors as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except FFTConvError as error:
            raise click.ClickException(f"{type(error).__name__}: {error}") from error


device = click.option(
    "--device",
    type=click.IntRange(min=0),
    default=None,
    metavar="N",
    help="CUDA ordinal of the GPU to use.",
)
new_file = click.Path(dir_okay=False, writable=True, path_type=Path)
json_file = click.option("--json", "json_path", type=new_file, help="Write the results to this file too.")
csv_file = click.option("--csv", "csv_path", type=new_file, help="Write them to this file, comma-separated.")
existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)


def precisions(default: str) -> Callable[[Command], Command]:
    """Return the option ``--precision``, which may be repeated."""
    return click.option(
        "--precision",
        "precisions",
        type=click.Choice(PRECISIONS),
        multiple=True,
        help=f"Only this precision; may be repeated.  [default: {default}]",
    )


def dtypes(choices: Sequence[str], default: str = "all") -> Callable[[Command], Command]:
    """Return the option ``--dtype``, which may be repeated."""
    return click.option(
        "--dtype",
        "dtypes",
        type=click.Choice(choices),
        multiple=True,
        help=f"Only this dtype; may be repeated.  [default: {default}]",
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a report, indented; infinite errors become null, for which JSON has a word."""
    path.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as aligned columns: the first column to the left, the others to the right.

    Of a row with fewer columns than the head, the last is a remark that runs on to the right of the others.
    """
    whole = [row for row in (head, *rows) if len(row) == len(head)]
    widths = [max(len(row[column]) for row in whole) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        remark = row[-1:] if len(row) < len(head) else ()
        numbers = row[1 : len(row) - len(remark)]
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=False)),
        ]
        lines.append("  ".join([*cells, *remark]).rstrip())
    return "\n".join(lines)
