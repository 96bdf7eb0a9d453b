"""A method whose key step is replaced by what one would do without it must be found out.

By a unit test, through an assertion; and by a cell of its notebook, through the comparison of
outputs or through a stored number that does not come again. A crash does not count. `make test`
runs the quick unit tests, `make sabotage` everything.
"""

import inspect
from functools import cache
from pathlib import Path

import nbformat
import pytest
import running
from entries import BY_NAME, ENTRIES, Entry
from outcomes import PASSED, RED
from patching import owner_of

from dqlab.methods.registry import all_methods

NOTEBOOKS = running.ROOT / "notebooks"
BASELINE = "rtn"
SLOW = pytest.mark.sabotage


def marked(entry: Entry):
    return pytest.param(entry, id=entry.name, marks=() if entry.quick else SLOW)


def notebook_of(entry: Entry) -> Path | None:
    """The notebook of the method's category, if it is written."""
    return next(NOTEBOOKS.glob(f"{all_methods()[entry.slug].category}-*.ipynb"), None)


@cache
def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_every_method_has_an_entry() -> None:
    """Plug-ins bring their own tests; rounding to nearest has no step to replace."""
    shipped = {s for s, m in all_methods().items() if m.__module__.startswith("dqlab.methods.")}
    assert {e.slug for e in ENTRIES} == shipped - {BASELINE}, "tests/sabotage/entries.py"
    assert len(BY_NAME) == len(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_baselines_stand_where_they_are_put(entry: Entry) -> None:
    """They take the same arguments, and the tests that are named exist."""
    for target, baseline in entry.replaced.items():
        owner, name = owner_of(target)
        pair = [inspect.signature(f).parameters.values() for f in (getattr(owner, name), baseline)]
        assert [(p.name, p.kind, p.default) for p in pair[0]] == [
            (p.name, p.kind, p.default) for p in pair[1]
        ]
    for node in entry.tests:
        path, _, name = node.partition("::")
        assert f"def {name.partition('[')[0]}(" in (running.ROOT / path).read_text()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_notebooks_mark_the_cells_that_must_notice(entry: Entry) -> None:
    path = notebook_of(entry)
    if path is None:
        pytest.skip(f"{entry.slug}: its category has no notebook yet")
    assert running.tagged(read(path), entry.tag), f"tag a cell of {path.name} with {entry.tag!r}"


@SLOW
def test_without_sabotage_all_named_tests_pass(tmp_path: Path) -> None:
    nodes = [node for entry in ENTRIES for node in entry.tests]
    assert running.outcomes(tmp_path, nodes) == dict.fromkeys(nodes, PASSED)


@pytest.mark.parametrize("entry", [marked(entry) for entry in ENTRIES])
def test_a_unit_test_notices(entry: Entry, tmp_path: Path) -> None:
    found = running.outcomes(tmp_path, entry.tests, entry.name)
    assert found == dict.fromkeys(entry.tests, "assertion")


@SLOW
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_notebook_cell_notices(entry: Entry, tmp_path: Path) -> None:
    path = notebook_of(entry)
    if path is None:
        pytest.skip(f"{entry.slug}: its category has no notebook yet")
    assert set(running.cells(tmp_path, read(path), entry.tag).values()) == {PASSED}
    found = running.cells(tmp_path, read(path), entry.tag, entry.name)
    assert set(found.values()) <= {PASSED, *RED}, found
    silent = [i for i in running.tagged(read(path), entry.tag) if found[i] == PASSED]
    assert not silent, f"code cells {silent} look the same with and without {entry.name}"
