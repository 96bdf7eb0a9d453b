"""The measuring: held-out trajectories of both pipelines, once for all that is compared."""

import json
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from torch import Tensor

from dqlab import seeds
from dqlab.compare.comparison import Comparison, Frechet
from dqlab.compare.ranking import Ranking
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.layers.policy import policy_from_dict
from dqlab.methods import describe, quantize
from dqlab.methods.corrected import prediction_correction
from dqlab.methods.recipe import title
from dqlab.methods.record import architecture
from dqlab.metrics import (
    artefacts,
    cost,
    error_powers,
    features,
    frechet_distance,
    frechet_with_error,
    paired_error,
    prompt_fidelity,
)
from dqlab.metrics.paired import readable
from dqlab.metrics.sampling import sample
from dqlab.models.captions import attributes_of
from dqlab.models.families import Family, Sampler, asked, family_of
from dqlab.trajectory import record

FRECHET_SAMPLES = 1_000
SMALLEST_FRECHET = 512
"""Four parts of 128 pictures, below which a part has no covariance of 64 features to speak of."""


def compare(
    pipe,
    *quantized,
    num_seeds: int = 16,
    sampler: Sampler | dict[str, Any] | None = None,
    baseline: bool = False,
    frechet: bool | int = False,
) -> Comparison | Ranking:
    """Compare quantized pipelines with their original on held-out trajectories.

    Args:
        pipe: the full-precision pipeline.
        quantized: what `quantize` made of it; several are ranked against each other.
        num_seeds: how many held-out seeds; the first ones of `dqlab.seeds.HELD_OUT`.
        sampler: default: the setting the quantized pipelines were made for.
        baseline: also quantize with plain rounding at the same bits and policy, and state gains.
        frechet: also the Frechet distance on dqlab's own features, from so many pictures of each
            pipeline (True: 1,000, which takes minutes).

    Returns:
        A `Comparison`, or for several pipelines a `Ranking` of them.

    Raises:
        InvalidInputError: if one is not quantized or of another architecture, or if they were made
            for different samplers and none is given.

    """
    if not quantized:
        raise InvalidInputError(
            "There is nothing to compare with: pass pipelines that quantize(pipe, ...) returned."
        )
    described = [_checked(pipe, q, number) for number, q in enumerate(quantized, 2)]
    count = check_counts(num_seeds, frechet)
    held = HeldOut(pipe, family_of(pipe), _sampler(sampler, described), num_seeds, count)
    found = [held.measure(q, info, baseline) for q, info in zip(quantized, described, strict=True)]
    return found[0] if len(found) == 1 else Ranking.of(found)


def check_counts(num_seeds: int, frechet: bool | int) -> int:
    """How many pictures the Frechet distance is of; 0 for none.

    Raises:
        InvalidInputError: if there are too few or too many of them, or of seeds.

    """
    if not isinstance(num_seeds, int) or not 2 <= num_seeds <= len(seeds.HELD_OUT):
        raise InvalidInputError(f"num_seeds={num_seeds}; choose 2 to {len(seeds.HELD_OUT)}.")
    return _frechet_samples(frechet)


def _sampler(given: Sampler | dict[str, Any] | None, described: list[dict[str, Any]]) -> Sampler:
    """The given one, or the one that all were made for."""
    if given is not None:
        return Sampler.of(given)
    made_for = {Sampler.of(info["sampler"]) for info in described}
    if len(made_for) > 1:
        told = "; ".join(str(s) for s in made_for)
        raise InvalidInputError(
            f"These pipelines were quantized for different samplers ({told}). Choose the one to "
            "compare with: compare(..., sampler=dict(num_inference_steps=...))."
        )
    return made_for.pop()


def _frechet_samples(frechet: bool | int) -> int:
    """How many pictures; 0 for none."""
    if isinstance(frechet, bool):
        return FRECHET_SAMPLES if frechet else 0
    if not isinstance(frechet, int) or not SMALLEST_FRECHET <= frechet <= len(seeds.QUALITY):
        raise InvalidInputError(
            f"frechet={frechet!r}; choose True, or {SMALLEST_FRECHET} to {len(seeds.QUALITY)} "
            "pictures: fewer have no Frechet distance worth an error bar."
        )
    return frechet


@dataclass
class HeldOut:
    """The full-precision side of a comparison, and the baselines already measured."""

    pipe: Any
    family: Family
    sampler: Sampler
    count: int
    frechet_samples: int
    baselines: dict[str, Comparison] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seeds = list(seeds.HELD_OUT[: self.count])
        self.states, self.reference = record(self.pipe, self.seeds, self.sampler)
        self.full_frechet = self._frechet(self.pipe) if self.frechet_samples else None

    def measure(self, quantized: Any, info: dict[str, Any], baseline: bool = False) -> Comparison:
        """Everything about one quantized pipeline."""
        network = self.family.denoiser(quantized)
        powers, absent = self._powers(quantized)
        images = self.family.run(quantized, self.sampler, self.seeds)
        return Comparison(
            label=label_of(info),
            info=info,
            sampler=self.sampler,
            seeds=self.seeds,
            powers=powers,
            absent=absent,
            baseline=self._baseline(info) if baseline else None,
            paired=paired_error(self.reference, images),
            artefacts=_artefacts(self.reference, images),
            fidelity=self._fidelity(images),
            frechet=self._frechet_of(quantized) if self.full_frechet else None,
            cost=cost(network, self.states),
            reference=self.reference,
            images=images,
        )

    def _powers(self, quantized: Any) -> tuple[Any, str]:
        """Error powers and "", or None and why there are none."""
        try:
            correct = prediction_correction(quantized)
        except NotApplicableError:
            kind = quantized.corrector.correction.kind
            return None, (
                f"{kind} depends on what a run did before, so its answer to one given state does "
                "not exist; judge by the final pictures."
            )
        return error_powers(self.states, self.family.denoiser(quantized), correct=correct), ""

    def _baseline(self, info: dict[str, Any]) -> Comparison:
        """Plain rounding at the same bits and policy, measured once."""
        asked = {k: info[k] for k in ("weights", "activations", "policy", "sampler")}
        key = json.dumps(asked, sort_keys=True)
        if key not in self.baselines:
            plain = quantize(
                self.pipe, "rtn", info["weights"], info["activations"],
                sampler=info["sampler"], policy=policy_from_dict(info["policy"]),
            )  # fmt: skip
            self.baselines[key] = self.measure(plain, describe(plain))
        return self.baselines[key]

    def _fidelity(self, images: Tensor) -> dict[str, dict[str, float]] | None:
        """Agreement with our own captions, for pipelines that draw small pictures of them."""
        told = "prompt" in self.family.conditions(self.pipe, self.seeds[:1])
        if not told or "prompt" in asked(self.pipe) or images.ndim != 4 or not readable(images):
            return None
        wanted = attributes_of(self.seeds)
        pictures = {"full": self.reference, "quantized": images}
        return {name: prompt_fidelity(shown, wanted) for name, shown in pictures.items()}

    def _frechet(self, pipe: Any) -> tuple[float, float]:
        """Distance to training pictures and its standard error."""
        from dqlab.metrics.quality import reference_features
        from dqlab.models.classifier import load_classifier

        if self.reference.ndim != 4 or not readable(self.reference):
            raise NotApplicableError(
                "frechet= compares with dqlab's own small colour pictures; this pipeline makes "
                f"{tuple(self.reference.shape[1:])}. Leave it out."
            )
        images = sample(pipe, seeds.QUALITY[: self.frechet_samples], sampler=self.sampler)
        train = reference_features(load_classifier())
        return frechet_with_error(train, features(images))[:2]

    def _frechet_of(self, quantized: Any) -> Frechet:
        count = self.frechet_samples
        return Frechet(*self._frechet(quantized), *self.full_frechet, _floor(count), count)


def _artefacts(reference: Tensor, images: Tensor) -> pd.DataFrame:
    """One row per pair; that of a video `[F, 3, H, W]` is the mean over its frames.

    Pictures without three colours are judged as grey ones.
    """
    frames = [x.flatten(0, -4) for x in (reference, images)]
    if reference.shape[-3] != 3:
        frames = [x.mean(1, keepdim=True).expand(-1, 3, -1, -1) for x in frames]
    found = artefacts(*frames)
    return found.groupby(found.index // (len(found) // len(images))).mean()


def _floor(count: int) -> float:
    """Distance between training pictures and as many test pictures (at most the 1,000 shipped)."""
    from dqlab.metrics.quality import reference_features
    from dqlab.models.classifier import load_classifier
    from dqlab.models.tint import held_out_pictures

    real, _ = held_out_pictures()
    train = reference_features(load_classifier())
    return frechet_distance(train, features(real[:count] / 2 + 0.5))


def label_of(info: dict[str, Any]) -> str:
    """Such as "q-diffusion, W4 A8"."""
    weights, activations = (
        " full" if info[kind] is None else info[kind] for kind in ("weights", "activations")
    )
    return f"{title(info['recipe'])}, W{weights} A{activations}"


def _checked(pipe, quantized, number: int) -> dict[str, Any]:
    """How one was quantized; `number` is its place among the arguments."""
    name = {2: "second", 3: "third"}.get(number, f"{number}th")
    if not (info := describe(quantized)):
        raise InvalidInputError(f"The {name} pipeline is not quantized; pass quantize(pipe, ...).")
    if describe(pipe):
        raise InvalidInputError("The first pipeline is quantized; pass the full-precision one.")
    if not isinstance(quantized, type(pipe)):
        raise InvalidInputError(
            f"Cannot compare a {type(pipe).__name__} with a {type(quantized).__name__}."
        )
    family = family_of(pipe)
    if architecture(family.denoiser(pipe)) != architecture(family.denoiser(quantized)):
        raise InvalidInputError(
            f"The first and the {name} pipeline hold networks of different architecture; pass the "
            "pipeline that the quantized one was made from."
        )
    return info
