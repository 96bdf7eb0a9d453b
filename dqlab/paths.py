"""Where dqlab finds what it ships and keeps what it makes."""

import contextlib
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent


def data_dir() -> Path:
    """The shipped `data/` folder; `DQLAB_SHIPPED_DIR` names another one."""
    return Path(os.environ.get("DQLAB_SHIPPED_DIR", ROOT / "data"))


def models_dir() -> Path:
    """Folder that holds one diffusers folder per shipped model."""
    return data_dir() / "models"


def state_dir() -> Path:
    """Resumable state of long runs: `.dqlab/` of the checkout, or `DQLAB_STATE_DIR`."""
    return Path(os.environ.get("DQLAB_STATE_DIR", ROOT / ".dqlab"))


@contextlib.contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """A folder to write beside `folder`; at the end it takes its place, complete or not at all.

    What killed runs left beside it is cleaned up first.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _finish_killed(folder)
    prefix = f".{folder.name}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=prefix) as scratch:
        yield Path(scratch) / "new"
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        (Path(scratch) / "new").rename(folder)


def _finish_killed(folder: Path) -> None:
    """Remove scratch folders whose process is gone; what was being swapped in is swapped in."""
    ours = re.compile(rf"\.{re.escape(folder.name)}-(\d+)-[^-]+")
    for scratch in folder.parent.glob(f".{glob.escape(folder.name)}-*-*"):
        owner = ours.fullmatch(scratch.name)
        if not owner or psutil.pid_exists(int(owner[1])):
            continue
        if not folder.exists() and (scratch / "old").exists() and (scratch / "new").exists():
            (scratch / "new").rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)
