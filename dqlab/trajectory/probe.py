"""Watch tensors pass by the sites of a wrapped model, without editing it."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from dqlab.layers import Quantizer, quantizers
from dqlab.trajectory.states import States

BATCH = 32


@contextlib.contextmanager
def tapped(
    model: nn.Module, sites: Iterable[str], watch: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """While inside, `watch(site, tensor)` sees every tensor that passes one of `sites`."""
    found = quantizers(model)
    taps = []
    for site in sites:
        tap = _tap(site, watch)
        found[site].taps.append(tap)
        taps.append((found[site], tap))
    try:
        yield
    finally:
        for quantizer, tap in taps:
            quantizer.taps.remove(tap)


def _tap(site: str, watch: Callable[[str, Tensor], None]) -> Callable[[Tensor], None]:
    return lambda tensor: watch(site, tensor)


@contextlib.contextmanager
def inactive(chosen: Iterable[Quantizer]) -> Iterator[None]:
    """Switch quantizers off for a while."""
    chosen = list(chosen)
    before = [q.active for q in chosen]
    try:
        for quantizer in chosen:
            quantizer.active = False
        yield
    finally:
        for quantizer, state in zip(chosen, before, strict=True):
            quantizer.active = state


@torch.no_grad()
def replay(model: nn.Module, states: States, batch_size: int = BATCH) -> Tensor:
    """The model's answer on every row of `states`, `[R, ...]`."""
    training = model.training
    model.eval()
    try:
        return torch.cat([part.call(model) for part in states.batches(batch_size)])
    finally:
        model.train(training)
