"""One JupyterLab and one browser for all tests of this folder."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import lab as harness
import pytest
from tiny_notebook import TINY, write

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.fixture(scope="session")
def visitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[harness.Visitor]:
    """Opens any committed notebook, and a tiny one made here."""
    if reason := harness.missing_browser():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(NOTEBOOKS, folder, dirs_exist_ok=True)
    write(folder / TINY)
    with harness.Lab(folder) as lab, harness.chromium() as browser:
        yield harness.Visitor(lab, browser)


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures go: DQLAB_SCREENSHOTS, else a temporary folder."""
    wanted = os.environ.get("DQLAB_SCREENSHOTS")
    return Path(wanted) if wanted else tmp_path_factory.mktemp("screenshots")
