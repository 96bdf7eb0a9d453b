"""Round to nearest: what every method is compared with.

No paper of its own; the affine quantizer as in Nagel et al., "A White Paper on Neural Network
Quantization" (arXiv 2106.08295), with min-max ranges:

    x_hat = s (clip(round(x / s) + z, 0, 2^b - 1) - z),
    s = (x_max - x_min) / (2^b - 1),  z = -round(x_min / s),  x_min <= 0 <= x_max.

Weights per output channel, activations per tensor, one static range for all sampling steps,
fitted on every step of 32 full-precision trajectories.
"""

from dqlab.methods.method import Method, Paper


class Rtn(Method):
    """Overrides nothing: the plain behaviour of all five moments."""

    slug = "rtn"
    paper = Paper("A White Paper on Neural Network Quantization", "arXiv 2021", "2106.08295")
    category = "baseline"


METHOD = Rtn
