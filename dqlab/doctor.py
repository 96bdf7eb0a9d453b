"""What this machine offers to dqlab, what it lacks, and what to do about it."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet
    from rich.table import Table

Status = Literal["ok", "warn", "fail"]

GIB = 2**30
# A notebook's kernel may use 1.5 GiB; JupyterLab and a second kernel want to live beside it.
MEMORY_WANTED = 4 * GIB
# A virtual environment with the CPU build of torch takes about 3 GiB, the shipped data 50 MB.
DISK_WANTED = 4 * GIB
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@dataclass(frozen=True)
class Check:
    """One thing looked at: its name, the verdict, what was found, and what to do about it."""

    name: str
    status: Status
    found: str
    advice: str = ""


def diagnose() -> list[Check]:
    """Look at everything once; needs no network and changes nothing.

    Returns:
        One `Check` per subject, in the order in which they are worth reading. `fail` means that
        dqlab does not work here, `warn` that a part of it does not or will be slow.
    """
    return [
        check_python(),
        Check("platform", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}"),
        check_cores(),
        check_memory(),
        check_instructions(),
        check_gpu(),
        check_triton(),
        check_browser(),
        check_fashion_mnist(),
        check_models(),
        check_disk(),
        *check_packages(),
    ]


def render(checks: list[Check]) -> "Table":
    """Lay the checks out as a table for `rich.print`."""
    from rich.table import Table
    from rich.text import Text

    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table("check", "verdict", "found", "what to do", title="dqlab doctor")
    for check in checks:
        verdict = Text(check.status, style=styles[check.status])
        table.add_row(check.name, verdict, Text(check.found), Text(check.advice))
    return table


def check_python() -> Check:
    """The running Python must be one that dqlab is tested with."""
    found = f"{platform.python_version()} at {sys.executable}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "Use Python 3.11, 3.12 or 3.13.")


def check_cores() -> Check:
    """Notebook times are stated for two cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    if count >= 2:
        return Check("cores", "ok", str(count))
    return Check("cores", "warn", str(count), "Expect notebooks to take twice their stated time.")


def check_memory() -> Check:
    """A kernel and JupyterLab must fit beside what already runs."""
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB free"
    if memory.available >= MEMORY_WANTED:
        return Check("memory", "ok", found)
    return Check("memory", "warn", found, "Keep one notebook open at a time; close its kernel.")


def check_instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> Check:
    """Low-bit CPU kernels need VNNI or AMX; everything else runs without."""
    import torch

    level = torch.backends.cpu.get_cpu_capability()
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    found = ", ".join([f"torch uses {level}", *(i for i in INSTRUCTIONS if i in flags)])
    if any("vnni" in flag or flag == "amx_int8" for flag in flags):
        return Check("instructions", "ok", found)
    return Check(
        "instructions",
        "warn",
        found,
        "No VNNI or AMX seen: int8 results are the same, int8 speed is not to be expected.",
    )


def nvidia_driver() -> str | None:
    """Name the NVIDIA GPU and driver as `nvidia-smi` does, or None."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip().splitlines()[0] if answer.returncode == 0 else None


def check_gpu() -> Check:
    """A GPU is optional; a driver that torch cannot use deserves a hint."""
    import torch

    driver = nvidia_driver()
    if torch.cuda.is_available():
        found = f"{torch.cuda.get_device_name()}, driver {driver or 'unknown'}"
        return Check("gpu", "ok", found)
    if driver:
        advice = "torch cannot use it. Install the CUDA build: rm -r .venv; make lab TORCH=cuda"
        return Check("gpu", "warn", f"{driver}, torch {torch.__version__}", advice)
    if torch.backends.mps.is_available():
        return Check("gpu", "ok", "Apple GPU (dqlab computes on the CPU)")
    return Check("gpu", "ok", "none; none is needed")


def check_triton() -> Check:
    """Triton compiles for a GPU, or emulates one in its interpreter."""
    import torch

    if find_spec("triton") is None:
        advice = "Kernels fall back to plain torch."
        if sys.platform == "linux":
            return Check("triton", "warn", "absent", f"{advice} pip install 'triton>=3.4,<4'")
        return Check("triton", "warn", "absent", f"{advice} Triton exists for Linux only.")
    version = metadata.version("triton")
    if torch.cuda.is_available():
        return Check("triton", "ok", f"{version}, compiler")
    return Check("triton", "ok", f"{version}, interpreter (no GPU; TRITON_INTERPRET=1)")


def check_browser() -> Check:
    """Only the browser test needs one that can run without a screen."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return Check("browser", "ok", path)
    advice = "Only the browser test is skipped. Debian: apt install chromium"
    return Check("browser", "warn", "no Chromium or Chrome on the PATH", advice)


def check_fashion_mnist() -> Check:
    """Training needs the original files; notebooks and tests do not."""
    from dqlab.models import fashion

    chosen = os.environ.get("DQLAB_DATA_DIR")
    folder = fashion.find()
    if folder and (chosen is None or folder == Path(chosen)):
        return Check("fashion-mnist", "ok", str(folder))
    if folder:
        advice = "Put the four idx files there, or unset DQLAB_DATA_DIR."
        return Check("fashion-mnist", "warn", f"{folder}, not in DQLAB_DATA_DIR={chosen}", advice)
    advice = (
        "Needed for training only, which downloads it once. "
        "Debian: apt install dataset-fashion-mnist; or set DQLAB_DATA_DIR to the idx files."
    )
    return Check("fashion-mnist", "warn", "not on this machine", advice)


def check_models() -> Check:
    """Shipped models are folders with a config or a diffusers index."""
    from dqlab.paths import models_dir

    folder = models_dir()
    indexes = [*folder.glob("*/model_index.json"), *folder.glob("*/config.json")]
    names = sorted({index.parent.name for index in indexes})
    if names:
        return Check("models", "ok", f"{', '.join(names)} in {folder}")
    advice = "Work from a full clone of the repository, or train one: dqlab train pixel-unet"
    return Check("models", "warn", f"none in {folder}", advice)


def check_disk() -> Check:
    """Room for an environment, results and checkpoints where dqlab is run."""
    free = shutil.disk_usage(Path.cwd()).free
    found = f"{free / GIB:.1f} GiB free at {Path.cwd()}"
    if free >= DISK_WANTED:
        return Check("disk", "ok", found)
    return Check("disk", "warn", found, f"Free some: {DISK_WANTED / GIB:.0f} GiB are comfortable.")


def check_packages(distribution: str = "dqlab") -> Iterator[Check]:
    """Compare installed versions with the ranges that a distribution declares.

    Optional groups are looked at only where something of theirs is installed: whoever installed
    dqlab without its notebooks is not told that JupyterLab is missing.
    """
    from packaging.requirements import Requirement

    problems = []
    requirements = [Requirement(text) for text in metadata.requires(distribution) or []]
    for needed in requirements:
        optional = "extra" in str(needed.marker)
        applies = optional or needed.marker is None or needed.marker.evaluate()
        problem = _version_problem(needed.name, needed.specifier, optional) if applies else None
        if problem:
            problems.append(problem)
    yield from problems
    if not problems:
        yield Check("packages", "ok", f"{len(requirements)} requirements, all in range")


def _version_problem(name: str, allowed: "SpecifierSet", optional: bool) -> Check | None:
    """Return the check for a package that is absent or out of range, or None."""
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        missing = Check(name, "fail", "absent", f"pip install '{name}{allowed}'")
        return None if optional else missing
    if allowed.contains(version, prereleases=True):
        return None
    advice = f"dqlab is tested with {name} {allowed}: pip install '{name}{allowed}'"
    return Check(name, "warn" if optional else "fail", version, advice)
