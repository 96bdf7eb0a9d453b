"""Fill the virtual environment this file is run with: torch first, then dqlab with its pins.

Run by `make` as `.venv/bin/python .ci/environment.py`; needs the standard library only.
TORCH=cpu or TORCH=cuda overrides what is seen of the machine.
"""

import os
import re
import subprocess
import sys
import urllib.request
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 5


def torch_pin(constraints: str) -> str:
    """Return the one exact torch requirement, such as `torch==2.13.0`."""
    found = re.findall(r"^torch==\S+$", constraints, flags=re.MULTILINE)
    if len(found) != 1:
        raise SystemExit(f"constraints.txt must pin torch exactly once, found {found}")
    return found[0]


def has_nvidia_driver() -> bool:
    """Say whether `nvidia-smi` exists and reports a working driver."""
    try:
        return subprocess.run(["nvidia-smi"], capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def wants_cpu_build(choice: str, platform: str, nvidia: bool) -> bool:
    """Decide whether the wheel comes from PyTorch's CPU index.

    Only Linux needs it: the plain wheels for macOS and Windows are CPU builds already.
    """
    if choice not in ("", "cpu", "cuda"):
        raise SystemExit(f"TORCH={choice} is not known. Say TORCH=cpu or TORCH=cuda.")
    return platform == "linux" and (choice == "cpu" or (choice == "" and not nvidia))


def is_reachable(url: str) -> bool:
    """Say whether an index answers within a few seconds."""
    try:
        with urllib.request.urlopen(f"{url}/torch/", timeout=PROBE_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def without_triton(constraints: str) -> str:
    """Drop Triton's pin: a CUDA build of torch names the one Triton release it works with."""
    return re.sub(r"^triton==.*\n", "", constraints, flags=re.MULTILINE)


def pip_install(*arguments: str, python: str = sys.executable) -> None:
    """Run pip for one interpreter; stop with its exit status when it fails."""
    command = [python, "-m", "pip", "--disable-pip-version-check", "install"]
    status = subprocess.run([*command, *arguments], cwd=ROOT).returncode
    if status:
        sys.exit(status)


def install_torch(pin: str, python: str = sys.executable) -> None:
    """Install exactly the pinned torch, without its dependencies (they follow, pinned)."""
    cpu = wants_cpu_build(os.environ.get("TORCH", ""), sys.platform, has_nvidia_driver())
    from_cpu_index = cpu and is_reachable(CPU_INDEX)
    print(f"torch: {pin}" + (f" from {CPU_INDEX}" if from_cpu_index else ""), flush=True)
    index = ["--index-url", CPU_INDEX] if from_cpu_index else []
    pip_install("--no-deps", *index, pin, python=python)


def main() -> None:
    """Install torch, the rest of the pins, and dqlab itself in editable form."""
    constraints = CONSTRAINTS.read_text()
    install_torch(torch_pin(constraints))
    own_triton = any(r.startswith("triton") for r in metadata.requires("torch") or [])
    pins = Path(sys.prefix) / "constraints.txt"
    pins.write_text(without_triton(constraints) if own_triton else constraints)
    pip_install("--constraint", str(pins), "--editable", ".[lab,test]")


if __name__ == "__main__":
    main()
