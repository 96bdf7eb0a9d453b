"""Measure what the notebook 0-start-here shows but has no time to compute.

    python -m dqlab.phenomena.start_here

writes data/results/start-here: about five minutes on one core.
"""

from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor

from dqlab import seeds
from dqlab.methods import quantize
from dqlab.metrics import error_powers, features
from dqlab.metrics.sampling import sample
from dqlab.models.families import Sampler, family_of
from dqlab.models.fashion import load_held_out
from dqlab.models.tint import dress
from dqlab.phenomena import stored
from dqlab.phenomena.bits import with_bits
from dqlab.phenomena.drift import (
    activation_sites,
    layer_table,
    range_table,
    static_ranges,
    watchable,
)
from dqlab.phenomena.layers import ends_against_middle, one_at_a_time
from dqlab.phenomena.quality import quality
from dqlab.phenomena.steps import fresh_and_inherited, single_step
from dqlab.trajectory import States, record

NAME = "start-here"
COMMAND = "python -m dqlab.phenomena.start_here"
MODEL = "pixel-unet"
BITS = (8, 6, 4, 3)


@dataclass(frozen=True)
class Plan:
    """How much to measure.

    Attributes:
        calibration: trajectories that set ranges.
        shown: trajectories behind every curve and picture, the first of the gallery.
        many: pictures per setting for distances between sets.
        sensitive: trajectories for one layer at a time.
        kept: pictures stored per single quantized step.
        compared: weight and activation bits of the settings with `many` pictures.
        sampler: the setting of everything.

    """

    calibration: int = 32
    shown: int = 8
    many: int = 128
    sensitive: int = 2
    kept: int = 3
    compared: tuple[tuple[int, ...], tuple[int, ...]] = ((8, 4, 3), (8, 6, 4))
    sampler: Sampler = field(default_factory=Sampler)


@dataclass(frozen=True)
class Base:
    """What every measurement starts from: the pipeline, its calibration and gallery runs."""

    pipe: object
    plan: Plan
    calibration: States
    gallery: States
    images: Tensor

    @classmethod
    def of(cls, pipe, plan: Plan) -> "Base":
        """Record both sets of trajectories."""
        calibration, _ = record(pipe, seeds.CALIBRATION[: plan.calibration], plan.sampler)
        gallery, images = record(pipe, seeds.GALLERY[: plan.shown], plan.sampler)
        return cls(pipe, plan, calibration, gallery, images)

    def run(self, pipe, count: int) -> Tensor:
        """Pictures of the first `count` gallery seeds, `[count, 3, H, W]` in [0, 1]."""
        many = [*seeds.GALLERY, *seeds.QUALITY][:count]
        return sample(pipe, many, batch_size=32, sampler=self.plan.sampler)


def measure(pipe, plan: Plan | None = None, say: stored.Say = stored.silent) -> stored.Found:
    """All frames and tensors of the notebook's stored results.

    Returns:
        Frames ranges, layers, ends, powers, single, inheritance, quality; tensors images (full
        precision, then every pair of `BITS`), single, features, real.

    """
    base = Base.of(pipe, plan or Plan())
    say("trajectories")
    frames, tensors = _places(base)
    say("ranges and layers")
    powers, images, w4a4 = _grid(base, say)
    frames["powers"], tensors["images"] = (
        powers,
        torch.stack([stored.to_bytes(i[: base.plan.shown]) for i in images.values()]),
    )
    frames["single"], tensors["single"] = _single(base, w4a4)
    frames["inheritance"] = _inheritance(base, w4a4)
    say("single steps")
    frames["quality"], more = _sets(base, images)
    return frames, tensors | more


def _places(base: Base) -> stored.Found:
    """Ranges at every site and step, and layers one at a time."""
    watched = watchable(base.pipe, base.calibration)
    ranges = range_table(watched, base.calibration, activation_sites(watched))
    table, bounds = layer_table(watched), static_ranges(ranges)
    family, some = family_of(base.pipe), base.gallery.seed < base.plan.sensitive
    states = base.gallery[some]
    layers = one_at_a_time(watched, states, bounds, table)
    ends = ends_against_middle(
        watched, states, bounds, table["layer"].tolist(), [family.first, family.last]
    )
    frames = {"ranges": ranges, "layers": layers, "ends": pd.DataFrame([ends])}
    return frames, {}


def _grid(base: Base, say: stored.Say):
    """Error powers and pictures of every pair of bit-widths; and the W4A4 pipeline."""
    plan, powers, kept = base.plan, [], None
    images = {(0, 0): base.run(base.pipe, plan.many)}
    for weights in BITS:
        first = quantize(
            base.pipe, "rtn", weights, BITS[0],
            sampler=plan.sampler, calibration=base.calibration,
        )  # fmt: skip
        bounds = static_ranges(range_table(first, base.calibration, activation_sites(first)))
        for activations in BITS:
            q = with_bits(first, activations, bounds)
            found = error_powers(base.gallery, family_of(q).denoiser(q))
            powers.append(found.assign(weights=weights, activations=activations))
            wide = weights in plan.compared[0] and activations in plan.compared[1]
            images[weights, activations] = base.run(q, plan.many if wide else plan.shown)
            kept = q if (weights, activations) == (4, 4) else kept
            say(f"W{weights}A{activations}")
    return pd.concat(powers, ignore_index=True), images, kept


def _single(base: Base, quantized) -> tuple[pd.DataFrame, Tensor]:
    """Error of the final picture when one step alone is quantized, and the first pictures."""
    times = base.gallery.t.unique_consecutive().tolist()
    times = times[: base.plan.sampler.num_inference_steps]
    finals = single_step(base.pipe, quantized, base.gallery, range(len(times)))
    rows = [
        (step, times[step], seed, float(mse))
        for step, made in finals.items()
        for seed, mse in enumerate((made - base.images).square().flatten(1).mean(1))
    ]
    pictures = torch.stack([stored.to_bytes(m[: base.plan.kept]) for m in finals.values()])
    return pd.DataFrame(rows, columns=["step", "timestep", "seed", "error"]), pictures


def _inheritance(base: Base, quantized) -> pd.DataFrame:
    """Fresh and inherited error of the quantized run from the gallery's seeds."""
    family = family_of(base.pipe)
    drifted, _ = record(quantized, seeds.GALLERY[: base.plan.shown], base.plan.sampler)
    nets = family.denoiser(base.pipe), family.denoiser(quantized)
    return fresh_and_inherited(*nets, base.gallery, drifted)


def _sets(base: Base, images: dict) -> tuple[pd.DataFrame, dict[str, Tensor]]:
    """Distances between sets of pictures, with the features they were computed from."""
    wide = {pair: made for pair, made in images.items() if len(made) == base.plan.many}
    reference = wide.pop((0, 0))
    held_out, labels = load_held_out()
    real, _ = dress(held_out, labels, torch.Generator().manual_seed(seeds.TINT))
    real = features(real / 2 + 0.5).half()
    found = {pair: features(made).half() for pair, made in wide.items()}
    rows = quality(reference, wide, real.float(), {pair: f.float() for pair, f in found.items()})
    return rows, {"features": torch.stack(list(found.values())), "real": real}


def pictures(results: stored.Stored) -> dict[tuple[int, int], Tensor]:
    """Stored pictures `[8, 3, 32, 32]` in [0, 1] by (weights, activations); (0, 0) is exact."""
    pairs = [(0, 0), *((w, a) for w in BITS for a in BITS)]
    return dict(zip(pairs, stored.to_pictures(results.tensors["images"]), strict=True))


def main() -> None:
    """Measure the shipped model and replace data/results/start-here."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
