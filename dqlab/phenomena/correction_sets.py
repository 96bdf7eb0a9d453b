"""Sets of pictures from a sampler that adds noise: does making room for the residual help them?

    python -m dqlab.phenomena.correction_sets

writes data/results/correction-sets: about ten minutes on one core. PTQD's and D2-DPM's variance
part lowers the sampler's noise. No single picture can say what that is worth, only many together.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dqlab import seeds
from dqlab.metrics import features, frechet_distance
from dqlab.metrics.sampling import sample
from dqlab.models.families import Sampler
from dqlab.phenomena import stored
from dqlab.phenomena.correction_bench import Plan, behind, bench, runs
from dqlab.phenomena.correction_claims import ETA_1
from dqlab.phenomena.error_correction import Found, variance_shares

NAME = "correction-sets"
COMMAND = "python -m dqlab.phenomena.correction_sets"
MODEL = "latent-unet"

PAIRS = {"ptqd": "ptqd, no variance", "d2-dpm": "d2-dpm, mean alone"}
"""A correction, and the same without its variance part."""
DRAWN = 50
"""Resamples of the Frechet distance, each of which needs a matrix root."""


@dataclass(frozen=True)
class Size:
    """How many pictures a set has, and how many are painted at once."""

    pictures: int = 512
    batch: int = 64


def measure(
    pipe, plan: Plan | None = None, say: stored.Say = stored.silent, size: Size | None = None
) -> stored.Found:
    """All frames of the notebook's third set of results; no tensors.

    Args:
        pipe: the full-precision pipeline.
        plan: how much; default: what ships, at its last and lowest bits.
        say: told what has been done.
        size: of the sets.

    Returns:
        Frames sets (bits, name, pictures; distance: Frechet, to the full-precision set of the
        same seeds; variance: over seeds, mean over pixels, as a multiple of full precision's; each
        with _low and _high), made room (the same numbers of the correction less those without its
        variance part), residual (bits, step, timestep, share: of the residual in the sampler's
        variance).

    """
    plan, size, found = plan or Plan(), size or Size(), Found(say)
    r = runs(pipe, replace(plan, pictures=1), ETA_1, replace(plan.sampler, eta=1.0))
    b = bench(r, "rtn", plan.bits[-1])
    exact, made = _paint(pipe, r.sampler, size), {}
    say("full precision painted")
    for name in ("rtn", *(name for pair in PAIRS.items() for name in pair)):
        corrected = b.rough if name == "rtn" else behind(b, name)
        made[name] = _paint(corrected, r.sampler, size)
        say(f"{name} painted")
    found.add("residual", *variance_shares(b, pipe).assign(bits=b.name).to_dict("records"))
    sets = {name: _numbers(exact, images) for name, images in made.items()}
    for name, numbers in sets.items():
        named = {"bits": b.name, "name": name, "pictures": len(exact)}
        found.add("sets", named | _row(numbers))
    for name, without in PAIRS.items():
        gap = {key: sets[name][key] - sets[without][key] for key in sets[name]}
        found.add("made room", {"bits": b.name, "name": name} | _row(gap))
    return found.frames(), {}


def _paint(pipe, sampler: Sampler, size: Size) -> Tensor:
    """Pictures of the first seeds that quality is measured with."""
    return sample(pipe, seeds.QUALITY[: size.pictures], size.batch, sampler)


def _numbers(exact: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Frechet distance and relative variance over seeds: of all pictures, then of resamples.

    All settings are resampled alike, so that their differences keep what seeds have in common.
    """
    count, generator = len(exact), torch.Generator().manual_seed(0)
    rows = torch.cat([torch.arange(count)[None], torch.randint(count, (DRAWN, count),
                                                               generator=generator)])  # fmt: skip
    pair = exact, images
    first, second = (features(x) for x in pair)
    distances = [frechet_distance(first[picked], second[picked]) for picked in rows]
    flat = [x.flatten(1).double() for x in pair]
    spread = [[float(x[picked].var(0).mean()) for x in flat] for picked in rows]
    theirs, ours = torch.tensor(spread).T
    return {"distance": torch.tensor(distances), "variance": ours / theirs}


def _row(numbers: dict[str, Tensor]) -> dict[str, float]:
    """Every number with its 95 % interval: name, name_low, name_high.

    By the standard deviation of the resamples: repeated pictures move a Frechet distance up.
    """
    found = {}
    for key, values in numbers.items():
        middle, wide = float(values[0]), 1.96 * float(values[1:].std())
        found |= {key: middle, f"{key}_low": middle - wide, f"{key}_high": middle + wide}
    return found


def main() -> None:
    """Measure the shipped model and replace data/results/correction-sets."""
    stored.produce(NAME, COMMAND, MODEL, measure)


if __name__ == "__main__":
    main()
