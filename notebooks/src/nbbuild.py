"""Make the notebooks from their sources.

    python notebooks/src/build.py [build [NAME...]]   notebooks/NAME.ipynb, solved and executed
    python notebooks/src/build.py student [NAME...]   notebooks/student/NAME.ipynb, no solutions
    python notebooks/src/build.py check [NAME...]     does notebooks/NAME.ipynb match its source?

No NAME means all. ``nbsource`` tells what a source may contain. ``build`` also measures each
notebook and keeps the figures in data/results/notebooks.json.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import nbsource
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode

CELL_TIMEOUT_S = 120
WIDGET = "application/vnd.jupyter.widget-view+json"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Folders:
    """Where sources lie and where notebooks and measurements go, below one root."""

    root: Path

    @property
    def sources(self) -> Path:
        """Holds NAME.py; names start with a digit, which tells them from the tools beside."""
        return self.root / "notebooks" / "src"

    def source(self, name: str) -> Path:
        """The source of one notebook."""
        return self.sources / f"{name}.py"

    def notebook(self, name: str) -> Path:
        """The solved, executed copy."""
        return self.root / "notebooks" / f"{name}.ipynb"

    def student(self, name: str) -> Path:
        """The copy without solutions."""
        return self.root / "notebooks" / "student" / f"{name}.ipynb"

    @property
    def records(self) -> Path:
        """Measured run times and memory."""
        return self.root / "data" / "results" / "notebooks.json"

    def names(self) -> list[str]:
        """All notebooks, in reading order."""
        return sorted(path.stem for path in self.sources.glob("[0-9]*.py"))

    def record(self, name: str) -> dict[str, object]:
        """What was measured when the notebook was last built; empty before the first build."""
        if not self.records.exists():
            return {}
        return json.loads(self.records.read_text(encoding="utf-8")).get(name, {})


HERE = Folders(Path(__file__).resolve().parents[2])


# ------------------------------------------------------------------------------- measurements
class PeakMemory(threading.Thread):
    """Samples the resident memory of a process and its children every 50 ms."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.peak_mb = 0.0
        self._stop_event = threading.Event()

    def run(self) -> None:
        """Sample until stopped."""
        self._sample()
        while not self._stop_event.wait(0.05):
            self._sample()

    def stop(self) -> float:
        """End sampling; the peak in MiB."""
        self._stop_event.set()
        self.join()
        return self.peak_mb

    def _sample(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [self.process, *self.process.children(recursive=True)]
            total = sum(one.memory_info().rss for one in family)
            self.peak_mb = max(self.peak_mb, total / 2**20)


def machine_kind() -> str:
    """Such as "x86_64 AVX2, 2 cores": enough to judge a time by."""
    from torch.backends import cpu

    return f"{platform.machine()} {cpu.get_cpu_capability()}, {os.cpu_count()} cores"


def commit(root: Path) -> str:
    """The checkout's short commit, or "unknown" outside of one."""
    command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def run_time_phrase(record: dict[str, object]) -> str:
    """The run time as the notebook states it, rounded up to 10 s so that rebuilds agree."""
    if not record:
        return "not measured yet"
    return f"about {10 * math.ceil(record['wall_s'] / 10)} s, measured on {record['machine']}"


def save_record(folders: Folders, name: str, record: dict[str, object]) -> None:
    """Put one notebook's measurements beside the others; never leaves half a file."""
    path = folders.records
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    text = json.dumps(known | {name: record}, indent=2, sort_keys=True) + "\n"
    _write(path, text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(path.suffix + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


# --------------------------------------------------------------------------------- the commands
@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Start kernels with one thread: sums, and so the printed digits, depend on the number."""
    before = dict(os.environ)
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def execute(notebook: NotebookNode, folder: Path) -> dict[str, object]:
    """Run all cells in place, in ``folder``; returns wall_s, longest_cell_s, peak_rss_mb.

    Raises an exception of nbclient at the first cell that fails, takes too long, or ends the
    kernel.
    """
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
    )
    start, longest = time.perf_counter(), 0.0
    # What cells write on stderr is an output; what is left is the kernel's own chatter.
    with one_thread(), client.setup_kernel(stderr=subprocess.DEVNULL):
        memory = PeakMemory(client.km.provisioner.pid)
        memory.start()
        try:
            for number, cell in enumerate(notebook.cells):
                began = time.perf_counter()
                client.execute_cell(cell, number)
                longest = max(longest, time.perf_counter() - began)
        finally:
            peak = memory.stop()
    wall = time.perf_counter() - start
    measured = {"wall_s": wall, "longest_cell_s": longest, "peak_rss_mb": peak}
    return {key: round(value, 1) for key, value in measured.items()}


def trim(notebook: NotebookNode) -> None:
    """Drop what says nothing to a reader, and steady what would differ from run to run."""
    notebook.metadata = nbformat.from_dict(nbsource.METADATA)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for number, output in enumerate(cell.get("outputs", [])):
            output.pop("transient", None)
            if view := output.get("data", {}).get(WIDGET):
                # The stored name leads to no live widget; any name that stays the same will do.
                view["model_id"] = f"{cell.id}-{number}"


def build(folders: Folders, name: str) -> str:
    """Execute the solved copy, keep it and its measurements."""
    source = nbsource.read(folders.source(name))
    notebook = nbsource.solved(source, run_time_phrase(folders.record(name)))
    measured = execute(notebook, folders.notebook(name).parent)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    origin = {"machine": machine_kind(), "commit": commit(folders.root), "date": today}
    save_record(folders, name, measured | origin)
    stated = nbsource.solved(source, run_time_phrase(folders.record(name)))
    for cell, words in zip(notebook.cells, stated.cells, strict=True):
        cell.source = words.source
    trim(notebook)
    _write(folders.notebook(name), nbformat.writes(notebook) + "\n")
    return f"{name}: {measured['wall_s']} s, {measured['peak_rss_mb']} MB"


def student(folders: Folders, name: str) -> str:
    """Write the student copy."""
    source = nbsource.read(folders.source(name))
    notebook = nbsource.student(source, run_time_phrase(folders.record(name)))
    path = folders.student(name)
    _write(path, nbformat.writes(notebook) + "\n")
    return f"{name}: {path.relative_to(folders.root)}"


def disagreements(folders: Folders, name: str) -> list[str]:
    """Where the committed notebook differs from its source; empty when it agrees."""
    path = folders.notebook(name)
    if not path.exists():
        return [f"{name}: not built; run `python notebooks/src/build.py build {name}`"]
    source = nbsource.read(folders.source(name))
    expected = nbsource.solved(source, run_time_phrase(folders.record(name)))
    found = nbformat.read(path, as_version=4)
    return [f"{name}: {problem}" for problem in nbsource.differences(expected, found)]


def check(folders: Folders, name: str) -> str:
    """Say that source and notebook agree, or raise SourceError with every difference."""
    problems = disagreements(folders, name)
    if problems:
        raise nbsource.SourceError("\n".join(problems))
    return f"{name}: matches its source"


def main(arguments: Sequence[str] | None = None, folders: Folders = HERE) -> int:
    """Run one command over the named notebooks; 0 if all went well.

    A notebook that fails is reported, keeps its old copy, and does not stop the others.
    """
    commands = {"build": build, "student": student, "check": check}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="?", choices=commands, default="build")
    parser.add_argument("names", nargs="*", metavar="NAME")
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(folders.names())
    if unknown:
        parser.error(f"no source for {sorted(unknown)}; known: {folders.names()}")
    failures = 0
    for name in options.names or folders.names():
        try:
            print(commands[options.command](folders, name))
        except (nbsource.SourceError, CellControlSignal, DeadKernelError) as error:
            print(error, file=sys.stderr)
            failures += 1
    return min(failures, 1)
