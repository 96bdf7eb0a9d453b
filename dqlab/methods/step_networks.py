"""Networks that map a timestep to a step size, one per site, and how they are fitted.

TDQ's module (So et al., NeurIPS 2023, arXiv 2306.02316); its formulas: `dqlab.reference.tdq`.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dqlab.engine import Budget, Progress, Stage, cosine, train
from dqlab.errors import InvalidInputError
from dqlab.formats import Format, Range
from dqlab.formats.base import SMALLEST_SCALE
from dqlab.methods.job import Job
from dqlab.ranges import shrink_search
from dqlab.ranges.rows import check_finite
from dqlab.reference import tdq as paper

HIDDEN = (64, 64, 64)
BATCH_STEPS, BATCH_VALUES = 16, 2048
VALUES = 8192
"""Kept per site and step: an 8-bit grid needs the tails, which 2,048 values hardly have."""


class StepNetworks(nn.Module):
    """The TDQ modules of all sites side by side: timesteps `[T]` -> step sizes `[sites, T]`.

    In float64, so that a step size does not depend on which others are asked with it. `hidden`
    are the widths between encoding and answer; `raw` feeds t / 1000 instead of the encoding, which
    the paper says networks fit badly.
    """

    def __init__(
        self,
        d: int,
        start: Tensor,
        seed: int = 0,
        dropout: float = 0.0,
        hidden: Sequence[int] = HIDDEN,
        raw: bool = False,
    ):
        super().__init__()
        self.d, self.raw, self.dropout = d, raw, nn.Dropout(dropout)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        generator = torch.Generator().manual_seed(seed)
        sites, widths = len(start), (1 if raw else d, *hidden, 1)
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
        h = t.double()[:, None] / 1000 if self.raw else paper.encoding(t, self.d)
        for W, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = torch.relu(h @ W + b)
        z = self.dropout(h) @ self.weights[-1] + self.biases[-1]
        return nn.functional.softplus(z).squeeze(2).clamp(min=SMALLEST_SCALE)


class Samples:
    """An observer that keeps `VALUES` random values of one site at every step."""

    def __init__(self, site: str, job: Job):
        self.site, self.context = site, job.context
        steps = (job.calibration.t[:, None] == job.context.schedule).int().argmax(1)
        self.rows = steps.bincount(minlength=len(job.context.schedule)).tolist()
        self.generator = torch.Generator().manual_seed(job.seed)
        self.kept: list[list[Tensor]] = [[] for _ in self.rows]

    def update(self, x: Tensor) -> None:
        """See one batch."""
        check_finite(x, self.site)
        steps = self.context.steps_of(len(x), self.site)
        for step in steps.unique().tolist():
            mine = x[steps == step].flatten()
            share = VALUES * int((self.context.step == step).sum()) / self.rows[step]
            chosen = torch.randint(len(mine), (max(1, round(share)),), generator=self.generator)
            self.kept[step].append(mine[chosen.to(mine.device)].float().cpu())

    def values(self) -> Tensor:
        """`[T, VALUES]`."""
        if missing := [step for step, kept in enumerate(self.kept) if not kept]:
            raise InvalidInputError(
                f"{self.site}: no calibration data at sampling steps {missing}, so their step "
                "sizes are unknown. Calibrate on whole trajectories of the same sampler."
            )
        return torch.stack([_exactly(torch.cat(kept), VALUES) for kept in self.kept])


def _exactly(x: Tensor, count: int) -> Tensor:
    return x[torch.arange(count) % len(x)]


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
            if n
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
    **shape: Any,
) -> StepNetworks:
    """Networks for sites with values `[sites, T, M]` at timesteps `[T]`, one format per site.

    `d` is the width of the timestep encoding; `updates` are the optimiser steps of the warm start
    and of the fit (0 leaves it out); `shape` may hold `hidden` and `raw` of `StepNetworks`.
    """
    best = best_steps(values, grids)
    start = best.double().log().mean(1).exp()
    task = FitSteps(StepNetworks(d, start, seed, **shape), t, values, grids, best, updates)
    return train(task, seed=seed, precision="fp32", progress=False).module.eval()


def best_steps(values: Tensor, grids: Sequence[Format]) -> Tensor:
    """The step sizes `[sites, T]` of least squared error on values `[sites, T, M]`."""
    searched = [shrink_search(v, g, axis=0, p=2.0) for v, g in zip(values, grids, strict=True)]
    return torch.stack([r.scale[:, 0] for r in searched])


def encoding_width(denoiser: nn.Module) -> int:
    """Width of the network's own timestep encoding; the paper's 128 for one that shows none."""
    from diffusers.models.embeddings import Timesteps

    found = (m.num_channels for m in denoiser.modules() if isinstance(m, Timesteps))
    return next(found, 128)
