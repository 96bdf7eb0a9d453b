"""A pytest plugin: sabotage first, then say of every test why it failed.

    python -m pytest -p outcomes --outcomes FILE [--sabotage SLUG] TEST...

FILE receives {node id: kind} as JSON. The kinds in RED are those that count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PASSED = "passed"
RED = ("assertion", "comparison", "redo")
"""By an assertion, by nbval's comparison, by a stored number that did not come again."""
CELL_TIMEOUT_S = 300
"""How long a cell takes is the business of other tests."""
MISMATCH = re.compile(r"^(\x1b\[[\d;]*m)*MismatchError(\x1b\[[\d;]*m)*:", flags=re.M)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options."""
    parser.addoption("--sabotage", default="", metavar="SLUG")
    parser.addoption("--outcomes", default="", metavar="FILE")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Replace the key step before any test module is imported; compare notebooks by meaning."""
    config.stash[FOUND] = {}
    if getattr(config.option, "nbval", False):
        spec = spec_from_file_location("of_notebooks", ROOT / "notebooks" / "conftest.py")
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        module.pytest_configure(config)
        config.option.nbval_cell_timeout = CELL_TIMEOUT_S
    if slug := config.option.sabotage:
        from patching import sabotage

        sabotage(slug)


FOUND = pytest.StashKey[dict[str, str]]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Keep the first failure of a test, be it in its set-up."""
    yield
    found = item.config.stash[FOUND]
    if found.get(item.nodeid, PASSED) == PASSED:
        found[item.nodeid] = kind_of(call.excinfo.value) if call.excinfo else PASSED


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what was found."""
    if target := session.config.option.outcomes:
        Path(target).write_text(json.dumps(session.config.stash[FOUND]), encoding="utf-8")


def kind_of(error: BaseException) -> str:
    """One of RED, or what else happened, in words."""
    if isinstance(error, AssertionError | pytest.fail.Exception):
        return "assertion"
    if str(error) == "Cell outputs differ":
        return "comparison"
    trace = getattr(error, "inner_traceback", None) or ""
    if MISMATCH.search(trace):
        return "redo"
    last = re.sub(r"\x1b\[[\d;]*m", "", trace).strip().split("\n")[-1]
    return f"{type(error).__name__}: {last or error}"
