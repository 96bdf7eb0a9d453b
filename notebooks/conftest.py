"""What ``pytest --nbval notebooks/`` needs: outputs are compared by meaning, see compare.py."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CELL_TIMEOUT_S = 60
collect_ignore = ["src", "student"]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Set what every run of the notebooks needs, whoever starts it."""
    option = config.option
    if not (getattr(option, "nbval", False) or getattr(option, "nbval_lax", False)):
        return
    sys.path.insert(0, str(ROOT / "tests" / "notebooks"))
    from compare import install

    install()
    option.nbval_current_env = not option.nbval_kernel_name
    sanitizer = ROOT / "tests" / "nbval_sanitize.cfg"
    option.nbval_sanitize_with = option.nbval_sanitize_with or str(sanitizer)
    # nbval waits for the whole time-out when a kernel dies, and its default is 2000 s.
    option.nbval_cell_timeout = min(option.nbval_cell_timeout, CELL_TIMEOUT_S)
    # Printed digits depend on the number of threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
