"""Options that more than one command has, and how commands report errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from fftconv_cupy.errors import FFTConvError

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
json_file = click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the results to this file too.",
)
existing_file = click.Path(exists=True, dir_okay=False, path_type=Path)


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
    path.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as aligned columns: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
