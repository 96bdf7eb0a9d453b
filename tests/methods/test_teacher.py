"""`job.teacher`: the full-precision copy that a fit learns from."""

import pytest
import torch
from tiny_models import SAMPLER, pipeline, recorded

import dqlab
from dqlab.errors import InvalidInputError
from dqlab.layers import quantizers
from dqlab.methods import Method, Paper, Recipe


class Learning(Method):
    """Calls `ask(job)` at one moment, or within a phase of its fit."""

    slug = "learning"
    paper = Paper("Learning", "here", "0000.00000")
    category = "test"

    def __init__(self, moment, ask):
        self.moment, self.ask = moment, ask

    def reshape(self, job):
        with torch.no_grad():
            job.denoiser.conv_in.weight.mul_(2)
        if self.moment == "reshape":
            self.ask(job)

    def fit(self, job):
        if self.moment == "fit":
            self.ask(job)
        phases = super().fit(job)
        return [*phases, self] if self.moment == "phase" else phases

    name = "look"

    def run(self, job):
        self.ask(job)


def quantized(moment, ask):
    method = Learning(moment, ask)
    recipe = Recipe((method,), dict.fromkeys(method.moments(), method))
    return dqlab.quantize(
        pipeline(), recipe, 4, 4, sampler=SAMPLER, calibration=recorded()[0]
    )  # fmt: skip


def test_the_teacher_is_the_reshaped_network_in_full_precision() -> None:
    kept = []
    q = quantized("fit", lambda job: kept.append(job.teacher))
    states, (teacher,) = recorded()[0], kept
    assert torch.equal(teacher.conv_in.weight, 2 * pipeline().unet.conv_in.weight)
    assert all(q.scale is None for q in quantizers(teacher).values())
    assert not torch.equal(teacher.conv_in.weight, q.unet.conv_in.weight)
    assert states.call(teacher).isfinite().all()


def test_it_is_copied_once_and_only_if_asked_for() -> None:
    jobs = []
    quantized("fit", lambda job: jobs.extend([job, job.teacher, job.teacher]))
    assert jobs[1] is jobs[2]
    quantized("fit", jobs.append)
    assert jobs[-1].full is None


def test_asked_for_in_time_it_is_there_in_the_phases() -> None:
    class Both(Learning):
        def fit(self, job):
            kept.append(job.teacher)
            return super().fit(job)

    kept = []
    method = Both("phase", lambda job: kept.append(job.teacher))
    recipe = Recipe((method,), dict.fromkeys(method.moments(), method))
    dqlab.quantize(pipeline(), recipe, 4, 4, sampler=SAMPLER, calibration=recorded()[0])
    assert kept[0] is kept[1]


@pytest.mark.parametrize("moment", ["reshape", "phase"])
def test_too_early_and_too_late_are_refused(moment) -> None:
    with pytest.raises(InvalidInputError, match=r"job\.teacher is copied .* method's `fit`"):
        quantized(moment, lambda job: job.teacher)
