"""The sampler setting that everything fitted to a trajectory is bound to."""

import math
from dataclasses import dataclass
from typing import Any

from dqlab.errors import InvalidInputError


@dataclass(frozen=True)
class Sampler:
    """The sampler setting that tables and corrections are fitted for.

    Attributes:
        num_inference_steps: network calls per trajectory (per guidance branch).
        eta: DDIM's eta; 0 is deterministic, 1 is DDPM-like. Samplers without one refuse all but 0.
        guidance_scale: classifier-free guidance; None means the family's default, 1 turns it off.

    """

    num_inference_steps: int = 20
    eta: float = 0.0
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        steps, eta, guidance = self.num_inference_steps, self.eta, self.guidance_scale
        if not (_is(steps, int) and 1 <= steps <= 1000):
            raise InvalidInputError(f"num_inference_steps={steps!r}; choose 1 to 1000.")
        if not (_is(eta, int | float) and 0 <= eta <= 1):
            raise InvalidInputError(f"eta={eta!r}; DDIM's eta lies in [0, 1].")
        if not (guidance is None or (_is(guidance, int | float) and math.isfinite(guidance))):
            raise InvalidInputError(f"guidance_scale={guidance!r}; give a number or None.")

    @classmethod
    def of(cls, given: "Sampler | dict[str, Any] | None") -> "Sampler":
        """From a Sampler, keyword arguments as a dict, or None for the defaults."""
        if given is None:
            return cls()
        if isinstance(given, cls):
            return given
        try:
            return cls(**given)
        except TypeError:
            known = ", ".join(cls.__dataclass_fields__)
            raise InvalidInputError(
                f"sampler={given!r} has unknown settings; known are {known}."
            ) from None


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
