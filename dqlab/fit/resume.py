"""Fitted units kept on disk, so that a run continues behind them after a kill."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dqlab.engine.state import load_state, save_state
from dqlab.errors import CheckpointError


@dataclass(frozen=True)
class KeptUnits:
    """One file per fitted unit, written when it is done.

    Attributes:
        folder: of the files; of one phase of one job.
        of: what the units were fitted with; a file of anything else is not used.

    """

    folder: Path
    of: str

    def file(self, path: str) -> Path:
        """Where the unit at module `path` is kept."""
        return self.folder / f"{path}.safetensors"

    def keep(self, path: str, unit: nn.Module, report: dict[str, Any]) -> None:
        """Write a fitted unit's numbers and its report, whole or not at all."""
        save_state(self.file(path), numbers(unit), {"of": self.of, "report": report})

    @torch.no_grad()
    def restore(self, path: str, unit: nn.Module) -> dict[str, Any] | None:
        """Give a unit the numbers it was left with; its report, or None if it is not kept.

        Raises:
            CheckpointError: if its file is damaged or is that of another network.

        """
        if not self.file(path).is_file():
            return None
        tensors, facts = load_state(self.file(path))
        if facts.get("of") != self.of:
            return None
        mine = numbers(unit)
        if {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in mine.items()}:
            raise CheckpointError(
                f"{self.file(path)} does not fit {path}: it holds other tensors. Delete it."
            )
        for name, value in tensors.items():
            mine[name].copy_(value)
        return facts["report"]


def numbers(unit: nn.Module) -> dict[str, Tensor]:
    """Weights and ranges by name."""
    return dict(unit.named_parameters()) | dict(unit.named_buffers())
