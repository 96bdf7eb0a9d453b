"""Q-Diffusion's step choice and split product."""

import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.reference.q_diffusion import calibration_steps, split_gain_db, split_product


def test_steps_are_evenly_spread() -> None:
    assert calibration_steps(100, 20) == list(range(0, 100, 5))
    assert calibration_steps(50, 25) == list(range(0, 50, 2))
    assert len(calibration_steps(100, 30)) == 30
    assert calibration_steps(7, 7) == list(range(7))


@pytest.mark.parametrize("m", [0, 21, -1])
def test_more_steps_than_there_are_is_an_error(m: int) -> None:
    with pytest.raises(InvalidInputError, match="sampler with 20 steps"):
        calibration_steps(20, m)


@pytest.mark.parametrize("bias", [True, False])
def test_without_quantization_it_is_the_plain_convolution(bias: bool) -> None:
    x, w = torch.randn(2, 10, 4, 4), torch.randn(6, 10, 1, 1)
    b = torch.randn(6) if bias else None
    found = split_product(
        x[:, :4], x[:, 4:], w[:, :4], w[:, 4:], b, (torch.clone,) * 2, (torch.clone,) * 2
    )
    torch.testing.assert_close(found, torch.nn.functional.conv2d(x, w, b), atol=1e-5, rtol=0)


def test_a_hundredfold_range_is_worth_forty_decibels() -> None:
    assert split_gain_db(1, 100) == pytest.approx(40)
    assert split_gain_db(3, 3) == 0
