"""A quantization in progress: what every moment may look at and change."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dqlab.errors import InvalidInputError
from dqlab.layers import Anatomy, Policy, QuantizedLayer, StepContext, quantizers
from dqlab.models.families import Family, Sampler
from dqlab.trajectory import States

if TYPE_CHECKING:
    from dqlab.methods.recipe import Recipe
    from dqlab.methods.score import Metric, Scorer

PROFILES = ("teach", "paper")


@dataclass
class Job:
    """One call of `quantize`.

    Attributes:
        original: the caller's pipeline; read only.
        denoiser: the copy that is being quantized.
        weights, activations: what the caller asked for.
        data: clean samples that a training fit learns from, or None for the model's own.
        calibration: set once the calibrate moment is over.
        anatomy: layers and attentions in execution order.
        moment: the one now running.
        phase: index of the fit's phase now running.
        choices: what searches found, or a trial is made with, by moment.
        state_dir: folder of this job's resumable state, or None.

    """

    original: Any
    denoiser: nn.Module
    family: Family
    recipe: Recipe
    sampler: Sampler
    weights: Any
    activations: Any
    policy: Policy
    profile: str = "teach"
    seed: int = 0
    data: Tensor | None = None
    context: StepContext = field(default_factory=StepContext)
    calibration: States | None = None
    anatomy: Anatomy | None = None
    moment: str = "calibrate"
    choices: dict[str, Any] = field(default_factory=dict)
    state_dir: Path | None = None
    scorer: Scorer | None = field(default=None, repr=False)
    full: nn.Module | None = field(default=None, repr=False)
    learning: bool = False
    phase: int = 0

    def layers(self) -> Iterator[QuantizedLayer]:
        """Wrapped Conv and Linear layers in execution order."""
        for path in self.anatomy.layers:
            yield self.denoiser.get_submodule(path)

    def weights_by_site(self) -> dict[str, Tensor]:
        """Every weight site's tensor; a split layer has one for each part."""
        return {
            part.site: piece.detach()
            for layer in self.layers()
            for part, piece in layer.weight_quantizer.pieces(layer.weight)
        }

    def sites(self, kind: str) -> list[str]:
        """Names of all "weight" or "activation" sites."""
        wanted = kind == "weight"
        return [
            s for s in quantizers(self.denoiser) if s.split("[")[0].endswith(".weight") == wanted
        ]

    @property
    def teacher(self) -> nn.Module:
        """The reshaped, wrapped denoiser in full precision: a copy, made when first asked for.

        Raises:
            InvalidInputError: if first asked for before the model is wrapped, or once the phases
                of the fit run and may have changed its numbers.

        """
        if self.full is None:
            if self.anatomy is None or self.learning:
                raise InvalidInputError(
                    "job.teacher is copied from the denoiser while it is wrapped and still in "
                    "full precision. Ask for it first in a method's `fit`, not in its phases "
                    "or before."
                )
            self.full = copy.deepcopy(self.denoiser)
        return self.full

    def score(
        self, candidate: Any, metric: str | Metric = "eps_sqnr_db", *, fit: bool = True
    ) -> float:
        """How good the result would be if this moment, `reshape` or `place`, chose `candidate`.

        The moment and all that follow it run on a throwaway copy in which `job.choice` gives the
        candidate; the result is measured on trajectories of `dqlab.seeds.SEARCH`. A candidate is
        scored once, and once only for all runs that share a `state_dir`.

        Args:
            candidate: what the method makes of it is its own affair; JSON-able.
            metric: "eps_sqnr_db", or a function of the finished throwaway `Trial`.
            fit: False leaves out what the recipe learns: ranges are set and that is all.

        Returns:
            Higher is better; minus infinity where the network answers NaN.

        Raises:
            InvalidInputError: if `candidate` is not JSON-able, the metric is unknown or gives no
                number, or this is another moment.

        """
        return self.scorer.score(self, candidate, metric, fit)

    def choice(self, moment: str, search: Callable[[], Any]) -> Any:
        """What the search at `moment` found: run once, remembered for the rest of the job.

        On a throwaway copy made by `score` it is the candidate. Written into the record.

        Args:
            moment: "reshape" or "place", the one the method is about to decide.
            search: finds the best candidate, with `score` or otherwise; JSON-able.

        Raises:
            InvalidInputError: if what it finds is not.

        """
        if moment not in self.choices:
            found = search()
            as_json(found)
            self.choices[moment] = found
        return self.choices[moment]


def as_json(candidate: Any) -> str:
    """A candidate as text that equals that of equal candidates alone.

    Raises:
        InvalidInputError: if JSON cannot hold it.

    """
    try:
        return json.dumps(candidate, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The candidate {candidate!r} cannot be written as JSON ({error}). Use numbers, "
            "texts, lists and dicts, so that scores and results can be kept by candidate."
        ) from error
