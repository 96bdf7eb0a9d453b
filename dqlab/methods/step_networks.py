"""Networks that map a timestep to a step size, one per site, and how they are fitted.

TDQ's module (So et al., NeurIPS 2023, arXiv 2306.02316); its formulas: `dqlab.reference.tdq`.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dqlab.engine import Budget, Progress, Stage, cosine, train
from dqlab.formats import Format, Range
from dqlab.formats.base import SMALLEST_SCALE
from dqlab.ranges import shrink_search
from dqlab.reference import tdq as paper

HIDDEN = (64, 64, 64)
BATCH_STEPS, BATCH_VALUES = 16, 2048


class StepNetworks(nn.Module):
    """The TDQ modules of all sites side by side: timesteps `[T]` -> step sizes `[sites, T]`.

    In float64, so that a step size does not depend on which others are asked with it.
    """

    def __init__(self, d: int, start: Tensor, seed: int = 0, dropout: float = 0.0):
        super().__init__()
        self.d, self.dropout = d, nn.Dropout(dropout)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        generator = torch.Generator().manual_seed(seed)
        sites, widths = len(start), (d, *HIDDEN, 1)
        for inputs, outputs in pairwise(widths):
            # the released code's scale; He's, which the paper names, is wider and fits the
            # timesteps in between worse
            std = (3 * inputs) ** -0.5 * (0.1 if outputs == 1 else 1.0)
            shape = (sites, inputs, outputs)
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.weights.append(nn.Parameter(std * drawn))
            self.biases.append(nn.Parameter(torch.zeros(sites, 1, outputs, dtype=torch.float64)))
        with torch.no_grad():  # s(t) begins near `start` at every t
            self.biases[-1] += paper.inverse_softplus(start.double())[:, None, None]

    def forward(self, t: Tensor) -> Tensor:
        """Step sizes `[sites, T]`."""
        h = paper.encoding(t, self.d)
        for W, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = torch.relu(h @ W + b)
        z = self.dropout(h) @ self.weights[-1] + self.biases[-1]
        return nn.functional.softplus(z).squeeze(2).clamp(min=SMALLEST_SCALE)


class FitSteps:
    """The engine's task: first towards each step's best s, then the error itself.

    `values` is `[sites, T, M]`, `grids` the format of each site, `best` `[sites, T]`.
    """

    ema_decay = None

    def __init__(
        self,
        networks: StepNetworks,
        t: Tensor,
        values: Tensor,
        grids: Sequence[Format],
        best: Tensor,
        updates: tuple[int, int],
    ):
        self.module, self.t, self.values, self.best = networks, t, values, best
        self.groups = {g: [i for i, other in enumerate(grids) if other == g] for g in set(grids)}
        self.fingerprint, self.warm = f"tdq-{updates}", True
        parameters = list(networks.parameters())
        adam = {"schedule": cosine(), "optimizer": torch.optim.Adam}
        self.stages = [
            Stage(Budget(steps=n), parameters, 1e-3, name=name, start=start, **adam)
            for n, name, start in zip(
                updates, ("warm start", "step sizes"), (self._warm, self._fit), strict=True
            )
        ]

    def _warm(self) -> None:
        self.warm = True

    def _fit(self) -> None:
        self.warm = False

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random steps and random positions among the kept values."""
        steps = torch.randperm(len(self.t), generator=generator)[:BATCH_STEPS]
        columns = torch.randperm(self.values.shape[2], generator=generator)[:BATCH_VALUES]
        return steps, columns

    def loss(self, batch: tuple[Tensor, Tensor], progress: Progress) -> Tensor:
        """Sum over sites, mean over steps."""
        steps, columns = batch
        s = self.module(self.t[steps])
        if self.warm:
            return (s.log() - self.best[:, steps].log()).square().mean(1).sum()
        x, total = self.values[:, steps][:, :, columns], torch.zeros(())
        for grid, sites in self.groups.items():
            scale = s[sites].float()[..., None]
            x_hat = grid.fake_quant(x[sites], Range(scale, torch.zeros_like(scale)))
            total = total + paper.normalized_error(x[sites], x_hat).mean(1).sum()
        return total


def fit_networks(
    values: Tensor,
    grids: Sequence[Format],
    t: Tensor,
    d: int,
    updates: tuple[int, int],
    seed: int = 0,
) -> StepNetworks:
    """Networks for sites with values `[sites, T, M]` at timesteps `[T]`, one format per site.

    `d` is the width of the timestep encoding; `updates` are the optimiser steps of the warm start
    and of the fit.
    """
    searched = [shrink_search(v, g, axis=0, p=2.0) for v, g in zip(values, grids, strict=True)]
    best = torch.stack([r.scale[:, 0] for r in searched])
    start = best.double().log().mean(1).exp()
    task = FitSteps(StepNetworks(d, start, seed), t, values, grids, best, updates)
    return train(task, seed=seed, precision="fp32", progress=False).module.eval()
