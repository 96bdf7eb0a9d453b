import pytest
import torch
from tiny_models import new_unet

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Range
from dqlab.layers import Quantizer, StepContext


def context(schedule=(900, 500, 100), timesteps=(100, 900, 900)) -> StepContext:
    found = StepContext()
    found.bind(None if schedule is None else torch.tensor(schedule))
    found.attach(unet := new_unet())
    unet(torch.zeros(len(timesteps), 3, 8, 8), torch.tensor(timesteps))
    return found


def per_step(found: StepContext, scales=(1.0, 2.0, 4.0)) -> Quantizer:
    quantizer = Quantizer("block.input", found)
    quantizer.format = Affine(8)
    quantizer.set_range(Range(torch.tensor(scales), torch.zeros(len(scales))), per_step=True)
    return quantizer


def test_each_row_uses_the_range_of_its_step() -> None:
    quantizer = per_step(context())
    x = torch.full((3, 2, 2), 3.3)
    assert quantizer(x)[:, 0, 0].tolist() == [4.0, 3.0, 3.0]
    assert quantizer(torch.full((3,), 3.3)).tolist() == [4.0, 3.0, 3.0]


def test_rows_of_folded_frames_use_their_samples_step() -> None:
    quantizer = per_step(context())
    assert quantizer(torch.full((6, 1), 3.3)).flatten().tolist() == [4.0, 4.0, 3.0, 3.0, 3.0, 3.0]


def test_rows_that_fit_no_sample_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"block\.input meets 4 rows.*runs 3"):
        per_step(context())(torch.zeros(4, 1))


def test_one_timestep_stands_for_all_rows() -> None:
    found = StepContext()
    found.attach(unet := new_unet())
    for given in (500, torch.tensor(500), torch.tensor([500])):
        unet(torch.zeros(2, 3, 8, 8), given)
        assert found.timestep.tolist() == [500, 500]
    unet(sample=torch.zeros(2, 3, 8, 8), timestep=7)
    assert found.timestep.tolist() == [7, 7]


def test_step_is_read_anew_at_every_call() -> None:
    found = StepContext()
    found.bind(torch.tensor([9, 5]))
    found.attach(unet := new_unet())
    for t, step in ((5, 1), (9, 0)):
        unet(torch.zeros(1, 3, 8, 8), t)
        assert found.step.tolist() == [step]


def test_timestep_off_the_schedule_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"\[333\.0\].*3 steps.*num_inference_steps"):
        per_step(context(timesteps=(100, 333, 900)))(torch.zeros(3, 1))


def test_nothing_bound_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no schedule is bound"):
        per_step(context(schedule=None))(torch.zeros(3, 1))
    with pytest.raises(InvalidInputError, match="no forward is running"):
        per_step(StepContext())(torch.zeros(3, 1))


def test_a_single_range_needs_no_step() -> None:
    quantizer = Quantizer("block.input", StepContext())
    quantizer.format = Affine(8)
    quantizer.set_range(Range(torch.tensor(2.0), torch.tensor(0.0)))
    assert quantizer(torch.tensor([3.3])).tolist() == [4.0]
    quantizer.active = False
    assert quantizer(torch.tensor([3.3])).tolist() == pytest.approx([3.3])
