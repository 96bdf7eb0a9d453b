"""Code shown from the package, so that a notebook never holds a copy of it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable

from jupyterlab_pygments import JupyterStyle
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from dqlab.errors import InvalidInputError
from dqlab.show.bundle import Page


def source(thing: Callable | type, docstring: bool = True) -> Page:
    """The source of a function, method or class as it is installed, highlighted.

    `docstring=False` leaves out the outermost docstring. Raises InvalidInputError for things
    without Python source (builtins, values).
    """
    thing = inspect.unwrap(thing) if callable(thing) else thing
    try:
        code = textwrap.dedent(inspect.getsource(thing)).rstrip()
    except (TypeError, OSError):
        raise InvalidInputError(
            f"{thing!r} has no Python source to show: pass a function or class of a package."
        ) from None
    code = code if docstring else _without_docstring(code)
    title = f"{thing.__module__}.{thing.__qualname__}"
    return Page(_highlighted(title, code), f"# {title}\n{code}")


def _without_docstring(code: str) -> str:
    body = ast.parse(code).body[0].body
    if ast.get_docstring(ast.parse(code).body[0]) is None or len(body) == 1:
        return code
    lines = code.splitlines()
    return "\n".join(lines[: body[0].lineno - 1] + lines[body[0].end_lineno :])


def _highlighted(title: str, code: str) -> str:
    # JupyterStyle colours by the theme's own CSS variables, so both themes are readable.
    formatter = HtmlFormatter(
        style=JupyterStyle,
        noclasses=True,
        nobackground=True,
        prestyles="line-height:1.35;margin:0",
    )
    return (
        f"<details open><summary><code>{title}</code></summary>"
        f"{highlight(code, PythonLexer(), formatter)}</details>"
    )
