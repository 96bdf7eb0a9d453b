"""What the choice of calibration states does: who picks what, and what their ranges miss.

The decider of a layer is R = max over steps / min over steps of its largest absolute value; a
chooser's blind spot is, over layers, the worst ratio of a layer's reach on all steps to its reach
on the steps picked.
"""

import copy
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.fit import capture, reconstruct
from dqlab.fit.errors import mean_error
from dqlab.fit.profiles import Settings
from dqlab.fit.reconstruct import outputs_of
from dqlab.fit.units import Unit, inner_layers
from dqlab.formats import Affine
from dqlab.layers import common_policy, quantizers
from dqlab.methods import describe
from dqlab.methods.job import Job
from dqlab.methods.recipe import Recipe, as_recipe
from dqlab.methods.registry import find
from dqlab.metrics import mean_sqnr_db, to_db
from dqlab.models.families import Sampler, family_of
from dqlab.ranges import grid_search
from dqlab.reference.brecq import block_loss
from dqlab.trajectory import States, inactive, replay, tapped


@dataclass(frozen=True)
class Reach:
    """Lowest and highest value at every site for every state: `low`, `high` `[sites, rows]`."""

    sites: tuple[str, ...]
    low: Tensor
    high: Tensor

    def over(self, rows: Tensor | slice) -> pd.DataFrame:
        """Min-max over some rows (mask, index or slice): columns low, high, indexed by site.

        Raises:
            InvalidInputError: if no row is chosen.

        """
        low, high = self.low[:, rows], self.high[:, rows]
        if not low.numel():
            raise InvalidInputError("No state is picked, so there is no range; pick at least one.")
        ends = {"low": low.amin(1).tolist(), "high": high.amax(1).tolist()}
        return pd.DataFrame(ends, index=pd.Index(self.sites, name="site"))

    def absmax(self, steps: Tensor) -> Tensor:
        """Largest absolute value at each site and step, `[sites, T]`; `steps` `[rows]`."""
        top = torch.maximum(self.low.abs(), self.high.abs())
        return torch.stack([top[:, steps == k].amax(1) for k in steps.unique()], 1)


def reach(watched, states: States, sites: Sequence[str]) -> Reach:
    """Watch `sites` of a wrapped pipeline, activations unquantized, while `states` are replayed.

    Args:
        watched: wrapped (`dqlab.phenomena.drift.watchable`, or quantized: then with its weights).
        states: one row each; no guidance branches are joined.
        sites: activation sites.

    """
    model = family_of(watched).denoiser(watched)
    off = [q for q in quantizers(model).values() if not q.site.endswith(".weight")]
    seen: dict[str, list[Tensor]] = {site: [] for site in sites}

    def see(site: str, x: Tensor) -> None:
        rows = x.detach().float().reshape(-1, x[0].numel())
        seen[site].append(torch.stack([rows.amin(1), rows.amax(1)]))

    with inactive(off), tapped(model, sites, see):
        replay(model, states)
    ends = torch.stack(
        [torch.cat(seen[site], 1).unflatten(1, (len(states), -1)) for site in sites]
    )
    return Reach(tuple(sites), ends[:, 0].amin(2), ends[:, 1].amax(2))


def worst_clip(absmax: Tensor, picked: Iterable[int]) -> float:
    """Max over layers of (reach over all steps / reach over the picked steps).

    Args:
        absmax: `[layers, T]`.
        picked: step indices, at least one.

    """
    chosen = absmax[:, sorted(set(picked))]
    return float((absmax.amax(1) / chosen.amax(1)).max())


def job_of(pipe, recipe: "str | Recipe", sampler: Sampler) -> Job:
    """A quantization that stands before its first moment, to ask a method what it picks."""
    family = family_of(pipe)
    policy = common_policy(family.first, family.last, 8)
    denoiser = family.denoiser(pipe)
    return Job(pipe, denoiser, family, as_recipe(recipe), sampler, 8, 8, policy)


def picks_of(pipe, recipe: "str | Recipe", sampler: Sampler) -> States:
    """The states a method calibrates on."""
    job = job_of(pipe, recipe, sampler)
    return job.recipe.calibrate(job)


def finished(states: States, images: Tensor) -> States:
    """Finished pictures `[N, 3, H, W]` in [0, 1] as inputs, with the time of the last step."""
    last = states[states.step == states.step.max()]
    return replace(last, x=images * 2 - 1)


def counts_of(pipe, slug: str, sampler: Sampler, states: States, **options: Any) -> list[int]:
    """How many states of each step the method `slug` would pick from recorded ones."""
    return find(slug)(**options).counts(job_of(pipe, slug, sampler), states)


def picked_frame(sets: dict[str, States]) -> pd.DataFrame:
    """Who picks what: columns source, step, timestep, seed."""
    parts = [
        pd.DataFrame(
            {
                "source": name,
                "step": s.step.numpy(),
                "timestep": s.t.numpy(),
                "seed": s.seed.numpy(),
            }
        )
        for name, s in sets.items()
    ]
    return pd.concat(parts, ignore_index=True)


def counts(picked: pd.DataFrame, source: str, T: int) -> list[int]:
    """How many states of each of T steps a source picks."""
    found = picked[picked["source"] == source]["step"].value_counts()
    return [int(found.get(step, 0)) for step in range(T)]


def per_step(powers: pd.DataFrame) -> pd.DataFrame:
    """SQNR per setting and step from error powers: columns source, step, timestep, db."""
    sums = powers.groupby(["source", "step", "t"], as_index=False, sort=False)[["signal", "noise"]]
    table = sums.sum()
    table["db"] = to_db(table["signal"].tolist(), table["noise"].tolist())
    return table.assign(timestep=table["t"].astype(int))[["source", "step", "timestep", "db"]]


def mean_by_source(powers: pd.DataFrame) -> dict[str, float]:
    """Mean SQNR over steps in dB, by the column source, in the order they come."""
    return {source: mean_sqnr_db(part) for source, part in powers.groupby("source", sort=False)}


def principal_path(F: Tensor, states: States) -> pd.DataFrame:
    """Features `[T, B, ...]` of all states on their two main directions.

    Returns:
        Columns step, sample, x, y; a step's timestep is in `states`.

    """
    flat = F.flatten(2)
    T, B = flat.shape[:2]
    rows = flat.reshape(T * B, -1).double()
    rows = rows - rows.mean(0)
    u, s, _ = torch.linalg.svd(rows, full_matrices=False)
    place = u[:, :2] * s[:2]
    place = place * place.sum(0).sign().where(place.sum(0) != 0, torch.ones(2).double())
    step = torch.arange(T).repeat_interleave(B)
    times = [int(states.t[states.step == k][0]) for k in range(T)]
    return pd.DataFrame(
        {
            "step": step.tolist(), "timestep": [times[k] for k in step.tolist()],
            "sample": torch.arange(B).repeat(T).tolist(),
            "x": place[:, 0].tolist(), "y": place[:, 1].tolist(),
        }
    )  # fmt: skip


def block_errors(
    watched, states: States, held_out: States, path: str, bits: int, settings: dict[str, Settings]
) -> pd.DataFrame:
    """Held-out error of one block and of the layers in it, nearest rounding and learned.

    Args:
        watched: a watchable pipeline.
        states: calibration rows.
        held_out: rows the errors are told on; the block is fed with full-precision inputs.
        path: of the block.
        bits: of its weights; the rest stays exact.
        settings: by name, one fit each.

    Returns:
        Columns fit ("nearest" first), layer ("block" for the block's own output), error (sum over
        dimension 1, mean over the rest, of the squared difference) and fitted, the same on the
        calibration rows.

    """
    teacher = family_of(watched).denoiser(watched)
    layers = tuple(p for p in describe(watched)["layers"] if p.startswith(f"{path}."))
    unit = Unit(path, "residual", layers)
    full, unseen = (capture(teacher, [path], s)[path] for s in (states, held_out))
    told = unseen, full
    inner, rows = inner_layers(teacher, unit, full.first(2)), []
    for name in ("nearest", *settings):
        student = _coarse(teacher, layers, bits)
        if name in settings:
            reconstruct(student, teacher, unit, full, states, settings[name], seed=0)
        block = student.get_submodule(path)
        rows.append((name, "block", *(mean_error(block, part, part) for part in told)))
        errors = [_inner(student, teacher, path, inner, part) for part in told]
        rows += [(name, layer[len(path) + 1 :], *(e[layer] for e in errors)) for layer in inner]
    return pd.DataFrame(rows, columns=["fit", "layer", "error", "fitted"])


def _coarse(teacher: nn.Module, layers: Sequence[str], bits: int) -> nn.Module:
    """A copy with the weights of some layers rounded to nearest, each time they are used."""
    student = copy.deepcopy(teacher)
    for layer in map(student.get_submodule, layers):
        quantizer = layer.weight_quantizer
        quantizer.format = Affine(bits, "sym_offset")
        quantizer.set_range(grid_search(layer.weight.detach(), quantizer.format, axis=0, dims=1))
        layer.frozen = False
    return student


def _inner(student: nn.Module, teacher: nn.Module, path: str, layers, fed) -> dict[str, float]:
    seen = []
    for network in (student, teacher):
        with torch.no_grad(), outputs_of(network, layers) as outputs:
            fed.call(network.get_submodule(path))
        seen.append(outputs)
    return {layer: float(block_loss(a, b)) for layer, a, b in zip(layers, *seen, strict=True)}


@torch.no_grad()
def rounded_states_db(
    pipe, states: States, bits: int, steps: Collection[int] | None = None
) -> Tensor:
    """SQNR in dB of each trajectory's last state when every x_{t-1} is rounded to `bits`.

    The network stays exact. Each state is rounded per tensor within its own extremes, as in
    PTQ4DM's study of what tolerates rounding (section 3.2). Eta is 0, so that x_{t-1} is the mean
    mu and nothing is drawn by Sigma.

    Args:
        pipe: full precision.
        states: recorded trajectories; their first states are where runs start.
        bits: of the states.
        steps: whose outcome is rounded, 0 the noisiest; None for all.

    """
    model, start = family_of(pipe).denoiser(pipe), states.step == 0
    times = states.t.unique_consecutive().tolist()[: int(states.step.max()) + 1]
    pipe.scheduler.set_timesteps(len(times))
    step = partial(pipe.scheduler.step, eta=0.0)
    exact = rough = states.x[start]
    fmt = Affine(bits)
    for k, t in enumerate(times):
        exact = step(model(exact, t).sample, t, exact).prev_sample
        rough = step(model(rough, t).sample, t, rough).prev_sample
        if steps is None or k in steps:
            rough = fmt.fake_quant(rough, fmt.params(rough.min(), rough.max()))
    power, error = (x.double().square().flatten(1).sum(1) for x in (exact, rough - exact))
    return torch.from_numpy(to_db(power, error))
