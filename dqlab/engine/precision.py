"""Pick fp32 or bf16 by timing one step of each: which one wins differs between machines."""

import contextlib
import time
from collections.abc import Callable

import torch

PRECISIONS = ("fp32", "bf16")


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager:
    """Context in which the forward pass runs at `precision` ("fp32" or "bf16")."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def choose_precision(step: Callable[[str], None], device: torch.device) -> str:
    """Time `step(precision)` for each precision (best of three after a warm-up); fastest name."""
    return min(PRECISIONS, key=lambda p: _best_seconds(step, p, device))


def _best_seconds(step: Callable[[str], None], precision: str, device: torch.device) -> float:
    step(precision)
    times = []
    for _ in range(3):
        _wait(device)
        start = time.perf_counter()
        step(precision)
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
