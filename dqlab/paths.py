"""Where dqlab finds what it ships and keeps what it makes."""

import os
from pathlib import Path

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
