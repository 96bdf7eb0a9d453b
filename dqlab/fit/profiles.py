"""How long and how hard units are fitted: quick settings to learn with, and the papers' own.

"teach" takes minutes on two CPU cores. With 300 Adam steps a rounding variable needs a learning
rate of 0.02 to get from its start to 0 or 1 at all; the papers' 1e-3 needs their 20,000 steps.
The rate stays constant, as in BRECQ: the regulariser decides most roundings in the last third of
the steps, when a cosine would already have taken the rate away (then a third of them is still
undecided at the end, and rounding them anyway loses half of the gain).
"""

from __future__ import annotations

from dataclasses import dataclass

from dqlab.errors import InvalidInputError


@dataclass(frozen=True)
class Settings:
    """One pass over the units.

    Attributes:
        iterations: optimiser steps per unit.
        batch: calibration rows per step.
        rounding_lr: Adam's learning rate of the rounding variables; None leaves rounding alone.
        step_lr: the same for activation step sizes.
        cosine: learning rates fall to 0 over half a cosine, else they stay.
        lam: weight of AdaRound's regulariser; 0 turns it off.
        p: power of the error.
        quantized_share: share of input elements from the quantized network, the rest are
            full-precision; 1 and 0 take all from one of them, 0.5 is QDrop's mix.
        drop: share of activation elements that quantizers inside the unit leave as they are.
        layer_weight: weight of the losses of inner layers (EDA-DM's lambda_m).
        fisher: weight squared errors by the squared gradient of the denoiser's error.
        grad_scale: multiply step-size gradients by LSQ's 1 / sqrt(N q_max).

    """

    iterations: int
    batch: int
    rounding_lr: float | None = None
    step_lr: float | None = None
    cosine: bool = True
    lam: float = 0.0
    p: float = 2.0
    quantized_share: float = 1.0
    drop: float = 0.0
    layer_weight: float = 0.0
    fisher: bool = False
    grad_scale: bool = False

    def __post_init__(self) -> None:
        if min(self.iterations, self.batch) < 1:
            raise InvalidInputError(f"iterations and batch must be at least 1; got {self}.")
        if self.rounding_lr is None and self.step_lr is None:
            raise InvalidInputError("Nothing to learn: give rounding_lr, step_lr or both.")
        for name in ("quantized_share", "drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidInputError(f"{name}={getattr(self, name)}; choose 0 to 1.")
        if min(self.lam, self.layer_weight) < 0 or self.p <= 0:
            raise InvalidInputError(
                f"lam={self.lam} and layer_weight={self.layer_weight} must be >= 0, and "
                f"p={self.p} > 0."
            )
        if self.fisher and (self.p != 2 or self.layer_weight):
            raise InvalidInputError("fisher=True needs p=2 and layer_weight=0.")


ROUNDING = {
    "teach": Settings(300, 16, rounding_lr=0.02, cosine=False, lam=0.03),
    "paper": Settings(20_000, 32, rounding_lr=1e-3, cosine=False, lam=0.01),
}
"""Weights of BRECQ and Q-Diffusion: AdaRound, inputs from the quantized network."""
STEPS = {
    "teach": Settings(100, 16, step_lr=4e-4, p=2.4, quantized_share=0),
    "paper": Settings(5_000, 32, step_lr=4e-4, p=2.4, quantized_share=0),
}
"""Activation step sizes of Q-Diffusion: LSQ, inputs from the full-precision network."""
JOINT = {
    "teach": Settings(
        150, 16, rounding_lr=0.5, step_lr=1e-4, quantized_share=0.5, drop=0.5, layer_weight=0.8
    ),
    "paper": Settings(
        5_000, 32, rounding_lr=0.5, step_lr=5e-4, quantized_share=0.5, drop=0.5, layer_weight=0.8
    ),
}
"""Both together with QDrop, without regulariser: EDA-DM (CIFAR-10 script, 4-bit weights).

Inner losses run the full-precision unit at every step, so a step costs about twice that of the
others; half as many steps keep "teach" at three minutes.
"""
