"""The resumable state of a training run: one safetensors file, replaced atomically.

Tensors are the model, its moving average and the optimiser's moments; everything else (stage,
step, seconds, loss curve) is JSON in the file's header. A kill at any moment leaves either the
old file or the new one, never half of one.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dqlab.errors import CheckpointError

VERSION = 1


def write_atomically(path: Path, write) -> None:
    """Call `write(temporary_path)`, flush it to disk, then rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and JSON-able facts as one file, atomically."""
    header = {"dqlab": json.dumps({"version": VERSION, **facts})}
    # Copies, because the format refuses tied weights, which are one tensor by two names.
    plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    write_atomically(path, lambda temporary: save_file(plain, temporary, metadata=header))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: if the file is damaged or was not written by `save_state`.

    """
    try:
        with safe_open(path, "pt") as handle:
            facts = json.loads((handle.metadata() or {})["dqlab"])
            version = facts["version"]
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable training state ({error}). Delete it to start again."
        ) from error
    if version != VERSION:
        raise CheckpointError(
            f"{path} has state version {version}, this dqlab reads {VERSION}. "
            "Delete it to start again."
        )
    return tensors, facts


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's per-parameter tensors, named `<index>.<moment>`."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": torch.as_tensor(v) for i, s in state.items() for name, v in s.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    """Give an optimiser back what `flatten_optimizer` took; hyper-parameters stay its own."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
