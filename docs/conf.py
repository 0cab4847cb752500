"""How Sphinx builds the documentation: ``sphinx-build -W --keep-going -b html docs docs/_build``."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import fftconv_cupy

sys.path.insert(0, str(Path(__file__).resolve().parent))

import figures

project = "fftconv-cupy"
author = "the authors of fftconv-cupy"
copyright = author
release = version = fftconv_cupy.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "py:obj"  # docstrings put names in single backquotes

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say more: shapes and dtypes
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Returns"]  # ours are sentences, not a type and a colon

html_theme = "furo"
html_title = f"fftconv-cupy {version}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]

_SEVERAL_ERRORS = re.compile(r"(\s+[A-Z]\w+(?:, [A-Z]\w+)*,)")


def join_errors(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put errors that share a description on one line, where napoleon looks for the colon."""
    for index in reversed(range(len(lines) - 1)):
        if _SEVERAL_ERRORS.fullmatch(lines[index]):
            lines[index] += " " + lines.pop(index + 1).strip()


class Figures(SphinxDirective):
    """``{figures} NAME``: the table of that name in figures.py."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table; a name that there is none of is an error of the page."""
        table = figures.TABLES.get(self.arguments[0])
        if table is None:
            raise self.error(f"no such figures: {self.arguments[0]!r}; there are {', '.join(figures.TABLES)}")
        for path in figures.FILES:
            self.env.note_dependency(str(path))
        head, *rows = table()
        group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in head), cols=len(head))
        group += nodes.thead("", table_row(head))
        group += nodes.tbody("", *map(table_row, rows))
        return [nodes.table("", group)]


def table_row(cells: Sequence[str]) -> nodes.row:
    """Return a row of a table."""
    return nodes.row("", *(nodes.entry("", nodes.paragraph(text=cell)) for cell in cells))


def setup(app: Sphinx) -> None:
    """Add the directive, and join errors before napoleon, whose priority is 500."""
    app.add_directive("figures", Figures)
    app.connect("autodoc-process-docstring", join_errors, priority=400)
