"""A correction at work: what happens around each `scheduler.step` of a trajectory."""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.layers.context import answer_of, call_arguments, sample_argument
from dqlab.methods.correction import Correction, Step
from dqlab.models.families import Family, Sampler


class Corrector:
    """A correction bound to one sampler setting; shared by a pipeline and its scheduler."""

    def __init__(
        self,
        correction: Correction,
        family: Family,
        sampler: Sampler,
        schedule: Tensor,
        seed: int,
    ):
        self.correction, self.sampler, self.seed = correction, sampler, seed
        self.schedule = schedule.to(torch.float64)
        self.guidance = family.guidance(sampler)
        self.branches = family.branches if self.guidance > 1 else ()
        self.learned_sigma = family.learned_sigma
        self.network: nn.Module | None = None
        self.scheduler: Any = None
        self.conditions: dict[str, Any] = {}
        self.start()

    def start(self) -> None:
        """Forget everything: a trajectory starts."""
        self.state: dict[str, Any] = {}
        self.generator = torch.Generator().manual_seed(self.seed)
        self.asked, self.fresh, self.replaying = 0, True, False
        self.edited: tuple[Tensor, Tensor] | None = None
        self.rows: int | None = None

    @contextlib.contextmanager
    def trajectory(self, network: nn.Module, scheduler: Any) -> Iterator[None]:
        """While inside, `network` belongs to one trajectory: its inputs are seen and edited."""
        self.start()
        self.network, self.scheduler = network, scheduler
        hook = network.register_forward_pre_hook(self._before, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
            self.network, self.scheduler, self.edited, self.conditions = None, None, None, {}

    def _before(self, network: nn.Module, args: tuple, kwargs: dict[str, Any]):
        if self.replaying:
            return None
        named = call_arguments(network, args, kwargs)
        name = sample_argument(network)
        stacked = named.pop(name)
        self.conditions = {k: v for k, v in named.items() if k not in ("timestep", "return_dict")}
        copies = max(1, len(self.branches))
        x = stacked[: len(stacked) // copies]
        self.rows = len(x)
        if not self.correction.edits("before"):
            return None
        t = int(torch.as_tensor(named["timestep"]).reshape(-1)[0])
        step = self.step_at(self.scheduler, t, x, self.sampler.eta)
        self.edited = x, self.correction.before(x, step).to(x)
        return (), {name: torch.cat([self.edited[1]] * copies), **named}

    def step_at(self, scheduler: Any, t: int, x: Tensor, eta: float) -> Step:
        """What a correction sees of timestep `t`; a trajectory that comes back to 0 starts anew.

        Raises:
            InvalidInputError: if `t` is not on the bound schedule.

        """
        where = (self.schedule == t).nonzero()
        if len(where) != 1:
            raise InvalidInputError(
                f"Timestep {t} is not one of the {len(self.schedule)} steps this correction was "
                f"fitted for. {self._fix()}"
            )
        index = int(where[0])
        if index == 0 and not self.fresh:
            self.start()
        return Step(index, t, x, eta, scheduler, self._predict, self.generator, self.state)

    def _predict(self, x: Tensor, t: Any) -> Tensor:
        """The network on (x, t) with the conditions of the trajectory's last call."""
        self._inside("asks the network")
        self.asked += 1
        if self.asked > self.correction.calls:
            raise InvalidInputError(
                f"{self.correction.kind} asked the network {self.asked} times in one trajectory, "
                f"but declares {self.correction.calls}. Set `calls` in its correction."
            )
        self.replaying = True
        try:
            return self._guided(x, t)
        finally:
            self.replaying = False

    def _inside(self, what: str) -> None:
        if self.network is None:
            raise InvalidInputError(
                f"{self.correction.kind} {what}, so it works inside a call of the pipeline only, "
                "not around the scheduler alone. Call the pipeline."
            )

    def _guided(self, x: Tensor, t: Any) -> Tensor:
        copies = max(1, len(self.branches))
        stacked = torch.cat([x] * copies)
        times = torch.as_tensor(t, device=x.device).reshape(-1).expand(len(stacked))
        answer = answer_of(self.network(stacked, timestep=times, **self.conditions))
        if self.learned_sigma:
            answer = answer[:, : x.shape[1]]
        if not self.branches:
            return answer
        part = dict(zip(self.branches, answer.chunk(copies), strict=True))
        return part["uncond"] + self.guidance * (part["cond"] - part["uncond"])

    def _fix(self) -> str:
        chosen = self.sampler
        return (
            f"Sample with num_inference_steps={chosen.num_inference_steps}, eta={chosen.eta:g}, "
            "or quantize again with sampler=dict(...)."
        )

    def _check(self, scheduler: Any, eta: float) -> None:
        visited = scheduler.timesteps.to("cpu", torch.float64)
        if not torch.equal(visited, self.schedule.cpu()):
            raise InvalidInputError(
                f"This correction was fitted for {len(self.schedule)} sampling steps from "
                f"t = {self.schedule[0]:g}, but the scheduler is set to {len(visited)} from "
                f"t = {visited[0]:g}. {self._fix()}"
            )
        if eta != self.sampler.eta:
            raise InvalidInputError(
                f"This correction was fitted for eta={self.sampler.eta:g}, but the sampler runs "
                f"with eta={eta:g}. {self._fix()}"
            )

    def around(self, scheduler: Any, plain: Any, call: dict[str, Any]) -> Any:
        """`plain`, the scheduler's own step, with everything the correction edits."""
        takes_eta = "eta" in inspect.signature(plain).parameters
        eta = float(call.get("eta", 0.0)) if takes_eta else self.sampler.eta
        self._check(scheduler, eta)
        # DiT's pipeline steps both guidance branches, which are one and the same.
        rows = self.rows or len(call["sample"])
        copies = len(call["sample"]) // rows
        x = self._sample(call["sample"][:rows])
        step = self.step_at(scheduler, int(call["timestep"]), x, eta)
        eps = self.correction.eps(call["model_output"][:rows], step).to(call["model_output"])
        step.eps = eps
        call = call | {"sample": x, "model_output": eps, "return_dict": True}
        noise = None
        if eta > 0 and self.correction.edits("sigma", "noise") and step.sigma > 0:
            noise, call = self._noise(step, call)
        output = plain(scheduler, **{k: v for k, v in call.items() if k != "self"})
        made = output.prev_sample
        following = made if noise is None else made + noise.to(made)
        # Tables are in single precision; the network may not be.
        repaired = self.correction.after(following, step).to(made)
        output.prev_sample = torch.cat([repaired] * copies)
        self.fresh = False
        return output

    def _sample(self, x: Tensor) -> Tensor:
        """The scheduler's x_t, or what `before` made of it."""
        if not self.correction.edits("before"):
            return x
        self._inside("edits the network's input")
        seen, edited = self.edited
        if not torch.equal(seen, x):
            raise NotApplicableError(
                "The network's input is not the scheduler's sample (it is scaled, or stacked for "
                f"guidance), so {self.correction.kind} cannot edit it before the network."
            )
        return edited

    def _noise(self, step: Step, call: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The edited noise, and the call that leaves the noise out."""
        from diffusers.utils.torch_utils import randn_tensor

        eps, sigma = call["model_output"], step.sigma
        z = call.get("variance_noise")
        if z is None:
            z = randn_tensor(
                eps.shape, generator=call.get("generator"), device=eps.device, dtype=eps.dtype
            )
        noise = self.correction.noise(sigma * z, step)
        inside = self.correction.sigma(sigma, step)
        silent = {"generator": None, "variance_noise": torch.zeros_like(z)}
        if inside.numel() > 1:  # the scheduler has one eta, channels have a sigma each
            return noise + _direction(step, inside, eps) - _direction(step, sigma, eps), (
                call | silent
            )
        if not torch.equal(inside, sigma):
            silent["eta"] = call["eta"] * float(inside / sigma)
        return noise, call | silent


def _direction(step: Step, sigma: Tensor, eps: Tensor) -> Tensor:
    """The direction term of a DDIM step, sqrt(1 - a_p - sigma^2) eps."""
    return (1 - step.alphas[1] - sigma**2).clamp(min=0).sqrt().to(eps) * eps
