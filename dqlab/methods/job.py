"""A quantization in progress: what every moment may look at and change."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dqlab.layers import Anatomy, Policy, QuantizedLayer, StepContext, quantizers
from dqlab.models.families import Family, Sampler
from dqlab.trajectory import States

if TYPE_CHECKING:
    from dqlab.methods.recipe import Recipe

PROFILES = ("teach", "paper")


@dataclass
class Job:
    """One call of `quantize`.

    Attributes:
        original: the caller's pipeline; read only.
        denoiser: the copy that is being quantized.
        weights, activations: what the caller asked for.
        calibration: set once the calibrate moment is over.
        anatomy: layers and attentions in execution order.

    """

    original: Any
    denoiser: nn.Module
    family: Family
    recipe: "Recipe"
    sampler: Sampler
    weights: Any
    activations: Any
    policy: Policy
    profile: str = "teach"
    seed: int = 0
    context: StepContext = field(default_factory=StepContext)
    calibration: States | None = None
    anatomy: Anatomy | None = None

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
