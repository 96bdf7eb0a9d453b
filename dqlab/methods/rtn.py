"""Round to nearest: what every method is compared with.

No paper of its own; the affine quantizer as in Nagel et al., "A White Paper on Neural Network
Quantization" (arXiv 2106.08295), with min-max ranges:

    x_hat = s (clip(round(x / s) + z, 0, 2^b - 1) - z),
    s = (x_max - x_min) / (2^b - 1),  z = -round(x_min / s),  x_min <= 0 <= x_max.

Weights per output channel, activations per tensor, one static range for all sampling steps,
fitted on every step of 32 full-precision trajectories.

With `dynamic`, activations get the min-max range of what they are at that moment, measured while
the network runs (section 2.2 there, "dynamic" ranges): nothing is calibrated, nothing is ever
clipped, and every layer of every step first reads its whole input to find the extremes.
"""

from collections.abc import Sequence

from torch import nn

from dqlab.errors import InvalidInputError
from dqlab.layers import RUN_TIME, quantizers
from dqlab.methods.job import Job
from dqlab.methods.method import Method, Paper


class Rtn(Method):
    """Plain behaviour at all five moments.

    Args:
        dynamic: None for static ranges; "sample" to measure one range per sample and tensor at
            run time (the same as per tensor when one picture is made at a time, and then no
            picture depends on its batch); "token" for one per row of a linear layer's input, and
            per sample elsewhere, since a convolution adds up rows.

    """

    slug = "rtn"
    paper = Paper("A White Paper on Neural Network Quantization", "arXiv 2021", "2106.08295")
    category = "baseline"

    def __init__(self, dynamic: str | None = None):
        if dynamic is not None and dynamic not in RUN_TIME:
            raise InvalidInputError(
                f"dynamic={dynamic!r}; choose one of {', '.join(RUN_TIME)}, or None for ranges "
                "that are set once."
            )
        self.dynamic = dynamic

    def acts(self) -> tuple[str, ...]:
        """Nowhere, or where ranges are placed."""
        return () if self.dynamic is None else ("place",)

    def ranges(self, job: Job, sites: Sequence[str]) -> None:
        """Min-max; those of activations at run time if so asked."""
        if self.dynamic is None:
            return super().ranges(job, sites)
        chosen = set(job.sites("activation")).intersection(sites)
        super().ranges(job, [site for site in sites if site not in chosen])
        found = quantizers(job.denoiser)
        for site in chosen:
            rows = isinstance(job.denoiser.get_submodule(site.rsplit(".", 1)[0]), nn.Linear)
            found[site].measure(self.dynamic if rows else "sample")


METHOD = Rtn
