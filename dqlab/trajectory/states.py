"""Sampling trajectories as data: the inputs a denoiser met, row by row.

The pipeline itself does the sampling; a hook on the denoiser writes down what it was asked.
So the record is exact for any scheduler, guidance or condition the pipeline uses.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.layers.context import answer_of, call_arguments, sample_argument, time_argument
from dqlab.models.families import Family, Sampler, family_of
from dqlab.trajectory.arguments import flatten, pick, same, unflatten, with_rows

_ROWS = ("x", "t", "step", "seed", "output", "branch")


@dataclass(frozen=True)
class States:
    """Denoiser inputs along trajectories, one row per (step, trajectory, guidance branch).

    Attributes:
        x: noisy inputs `[R, ...]`.
        t: timesteps `[R]`.
        step: index of the sampling step, int64 `[R]`, 0 is the noisiest.
        seed: which trajectory, int64 `[R]`.
        output: the denoiser's own answer `[R, ...]`.
        branch: index into `branches` `[R]`; 0 everywhere without guidance.
        conditions: other tensor inputs by argument name, a dotted one where it lies in a dict
            (`added_cond_kwargs.time_ids`); `[R, ...]`, or `[R x m, ...]` where every row has m of
            its own, such as one per video frame.
        constants: arguments that are the same for every row, named alike.
        branches: names of the guidance branches; empty if each row stands alone.
        guidance_scale: how the branches are mixed; a tensor where it differs along the sample.
        channels: how many of the output's channels the sampler steps by; None for all.
        sampler: the setting of the run they come from; None if they were put together by hand.

    """

    x: Tensor
    t: Tensor
    step: Tensor
    seed: Tensor
    output: Tensor
    branch: Tensor = None  # type: ignore[assignment]  # zeros, filled in below
    conditions: dict[str, Tensor] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    branches: tuple[str, ...] = ()
    guidance_scale: float | Tensor = 1.0
    channels: int | None = None
    sampler: Sampler | None = None

    def __post_init__(self) -> None:
        if self.branch is None:
            object.__setattr__(self, "branch", torch.zeros(len(self.x), dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows) -> "States":
        """The chosen rows (a slice, mask or index tensor)."""
        picked = {k: getattr(self, k)[rows] for k in _ROWS}
        conditions = pick(self.conditions, self.conditions, rows, len(self))
        return replace(self, **picked, conditions=conditions)

    def batches(self, size: int) -> Iterator["States"]:
        """Consecutive pieces of at most `size` rows."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def call(self, denoiser: nn.Module) -> Tensor:
        """Ask `denoiser` about these rows."""
        return _ask(denoiser, self.x, self.t, self.constants | self.conditions)

    def guided(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the sampler sees: uncond + scale (cond - uncond), or the outputs themselves.

        Args:
            outputs: one per row of this whole set, branches included.

        Returns:
            Guided outputs `[R / branches, ...]`, without the channels of a learned variance, and
            the row each one stands for.

        Raises:
            InvalidInputError: if a state is there in one branch only.

        """
        outputs = outputs[:, : self.channels]
        if not self.branches:
            return outputs, torch.arange(len(self))
        unasked, asked = self._pairs()
        plain = outputs[unasked]
        return plain + self.guidance_scale * (outputs[asked] - plain), asked

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """Rows of the two branches of every state side by side, in whatever order they lie."""
        state = self.step * (self.seed.max() + 1) + self.seed
        mine = {
            name: (self.branch == i).nonzero().flatten() for i, name in enumerate(self.branches)
        }
        order = {name: state[rows].argsort(stable=True) for name, rows in mine.items()}
        there = [state[mine[name][order[name]]] for name in ("uncond", "cond")]
        if not torch.equal(*there):
            raise InvalidInputError(
                "Guidance needs both branches of every state, but these rows hold some states in "
                f"one only ({len(there[0])} rows unconditional, {len(there[1])} conditional). "
                "Choose rows by step and seed, such as states[states.step == 0]."
            )
        partner = torch.empty_like(mine["cond"])
        partner[order["cond"]] = mine["uncond"][order["uncond"]]
        return partner, mine["cond"]

    @property
    def hash(self) -> str:
        """Short SHA-256 over inputs and timesteps; names the set in a saved model."""
        digest = hashlib.sha256()
        for tensor in (self.x, self.t, *self.conditions.values()):
            digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _row_counts(self) -> dict[str, int]:
        named = {name: getattr(self, name) for name in _ROWS} | self.conditions
        return {name: len(tensor) for name, tensor in named.items()}

    def check(self, why: str) -> "States":
        """Refuse an empty set, a ragged one, or NaN or infinity in inputs or answers."""
        if len(self) == 0:
            raise InvalidInputError(f"The {why} set is empty: give it at least one trajectory.")
        for name, rows in self._row_counts().items():
            ragged = rows != len(self) if name in _ROWS else rows == 0 or rows % len(self)
            if ragged:
                raise InvalidInputError(
                    f"The {why} set has {len(self)} rows of x but {rows} of {name}. Take it as "
                    "record returned it, or choose rows with states[rows]."
                )
        finite = torch.ones(len(self), dtype=torch.bool, device=self.x.device)
        for tensor in (self.x, self.output, *self.conditions.values()):
            finite &= tensor.reshape(len(self), -1).isfinite().all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise InvalidInputError(
                f"The {why} set holds NaN or infinity in row {row} (step {int(self.step[row])}, "
                f"seed {int(self.seed[row])}). Check the model it was recorded with."
            )
        return self


def _ask(denoiser: nn.Module, x: Tensor, t: Tensor, flat: dict[str, Any]) -> Tensor:
    """The denoiser's answer, other arguments given flat."""
    return answer_of(denoiser(x, **{time_argument(denoiser): t}, **unflatten(flat)))


class _Recorder:
    """Forward hook that keeps every call's inputs and output."""

    def __init__(self, seeds: Sequence[int]):
        self.seeds, self.calls = torch.tensor(list(seeds)), []

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        named = call_arguments(module, args, kwargs)
        x = named.pop(sample_argument(module)).detach().clone()
        t = torch.as_tensor(named.pop(time_argument(module))).reshape(-1)
        named.pop("return_dict", None)
        t = t.expand(len(x)).clone().to(x.device)
        self.calls.append((x, t, answer_of(output).detach().clone(), flatten(named)))

    @torch.no_grad()
    def with_rows(self, denoiser: nn.Module) -> frozenset[str]:
        """Which arguments have rows, told by the first call."""
        x, t, answer, named = self.calls[0]
        return with_rows(lambda rows, part: _ask(denoiser, x[rows], t[rows], part), answer, named)

    def states(self, with_rows: frozenset[str]) -> States:
        """All calls stacked; rows of one call repeat the seeds once per guidance branch."""
        xs, ts, outputs, named = zip(*self.calls, strict=True)
        per_call = [len(x) for x in xs]
        step = torch.repeat_interleave(torch.arange(len(xs)), torch.tensor(per_call))
        seed = torch.cat([self.seeds.repeat(n // len(self.seeds)) for n in per_call])
        conditions = {
            k: torch.cat([each[k] for each in named]) for k in named[0] if k in with_rows
        }
        constants = [{k: v for k, v in each.items() if k not in with_rows} for each in named]
        stacked = (torch.cat(xs), torch.cat(ts), step, seed, torch.cat(outputs))
        branch = torch.cat([torch.arange(n) // len(self.seeds) for n in per_call])
        return States(*stacked, branch, conditions, _one(constants))


def _one(constants: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is the same in all calls."""
    first = constants[0]
    for other in constants[1:]:
        if changed := [k for k in first if not same(first[k], other.get(k))]:
            raise NotApplicableError(
                f"The pipeline gave its network another {changed[0]} in the course of sampling, "
                "which is not a tensor with a row per picture, so its states cannot be replayed."
            )
    return first


def record(
    pipe,
    seeds: Sequence[int],
    sampler: Sampler | dict | None = None,
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> tuple[States, Tensor]:
    """Run one trajectory per seed and write down everything the denoiser was asked.

    Args:
        pipe: a diffusers pipeline.
        seeds: one initial noise each; the same seed always gives the same noise.
        sampler: default 20 DDIM steps, eta 0.
        batch_size: trajectories run together.
        progress: called with the number of finished trajectories after each batch.

    Returns:
        The states, ordered by seed batch, step, row; and the images `[N, 3, H, W]` (of a video
        pipeline `[N, frames, 3, H, W]`) in [0, 1].

    Raises:
        InvalidInputError: if `seeds` is empty.
        NotApplicableError: if the network's arguments cannot be told apart row by row.

    """
    seeds = list(seeds)
    if not seeds:
        raise InvalidInputError("No trajectory to record: `seeds` is empty.")
    family, sampler = family_of(pipe), Sampler.of(sampler)
    denoiser, parts, images, rows = family.denoiser(pipe), [], [], None
    for start in range(0, len(seeds), batch_size):
        recorder = _Recorder(seeds[start : start + batch_size])
        handle = denoiser.register_forward_hook(recorder, with_kwargs=True)
        try:
            images.append(family.run(pipe, sampler, recorder.seeds.tolist()))
        finally:
            handle.remove()
        rows = recorder.with_rows(denoiser) if rows is None else rows
        parts.append(_with_guidance(recorder.states(rows), pipe, family, sampler))
        if progress:
            progress(min(start + batch_size, len(seeds)))
    return concatenate(parts), torch.cat(images)


def _with_guidance(states: States, pipe, family: Family, sampler: Sampler) -> States:
    """Say which channels count and which run it was; name the branches if there are any."""
    states = replace(states, channels=family.prediction_channels(pipe), sampler=sampler)
    if not bool(states.branch.any()):
        return states
    return replace(states, branches=family.branches, guidance_scale=family.mix(pipe, sampler))


def concatenate(parts: Sequence[States]) -> States:
    """Join sets recorded with the same pipeline."""
    joined = {n: torch.cat([getattr(p, n) for p in parts]) for n in _ROWS}
    keys = parts[0].conditions
    conditions = {k: torch.cat([p.conditions[k] for p in parts]) for k in keys}
    constants = _one([p.constants for p in parts])
    return replace(parts[0], **joined, conditions=conditions, constants=constants)
