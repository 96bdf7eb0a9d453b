"""Write constraints.txt from a fresh environment resolved from pyproject.toml.

Run by `make lock`. Everything moves to its newest allowed version except torch, which moves
only on purpose: `make lock TORCH_VERSION=2.13.0`.
"""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from environment import CONSTRAINTS, ROOT, install_torch, pip_install, torch_pin

HEADER = """\
# The exact versions the tests pass with, for Python 3.11 to 3.13 on Linux.
# Made by `make lock`: a fresh environment resolved from pyproject.toml [lab,test], frozen.
# A constraints file: it pins what gets installed and installs nothing by itself.
"""
NOT_PINNED = ("dqlab", "pip", "setuptools", "wheel")


def as_constraints(freeze: str) -> str:
    """Turn `pip freeze` output into sorted pins, without torch's local build suffix."""
    lines = [re.sub(r"\+\w+$", "", line) for line in freeze.splitlines()]
    pins = [p for p in lines if re.fullmatch(r"[\w.-]+==[\w.!]+", p)]
    kept = [p for p in pins if p.split("==")[0].lower() not in NOT_PINNED]
    return HEADER + "\n".join(sorted(kept, key=str.lower)) + "\n"


def resolve(python: str, torch: str) -> str:
    """Install dqlab without pins but for torch; return what `pip freeze` then says."""
    install_torch(torch, python)
    pip_install(torch, "--editable", f"{ROOT}[lab,test]", python=python)
    return subprocess.check_output([python, "-m", "pip", "freeze"], text=True)


def main() -> None:
    """Resolve in a throwaway environment and replace constraints.txt."""
    pin = f"torch=={sys.argv[1]}" if len(sys.argv) > 1 else torch_pin(CONSTRAINTS.read_text())
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        CONSTRAINTS.write_text(as_constraints(resolve(python, pin)))
    print(f"wrote {CONSTRAINTS}")


if __name__ == "__main__":
    main()
