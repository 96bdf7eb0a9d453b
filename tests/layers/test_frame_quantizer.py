import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Range
from dqlab.layers import Quantizer, StepContext

FRAMES = 4


def quantizer(videos: int):
    context = StepContext()
    context.at(torch.full((videos,), 500.0))
    made = Quantizer("there.input", context)
    made.format = Affine(4)
    scale = torch.tensor([0.1, 0.2, 0.4, 0.8])
    made.set_range(Range(scale, torch.full_like(scale, 8.0)), frames=FRAMES)
    return made


def test_a_frame_uses_its_own_range_in_every_video_and_branch() -> None:
    x, made = torch.randn(2 * FRAMES, 3, 5, 5), quantizer(2)
    found = made(x)
    for row in range(len(x)):
        one = Range(made.scale[row % FRAMES], made.zero_point[row % FRAMES])
        assert torch.equal(found[row], Affine(4).fake_quant(x[row], one))


@pytest.mark.parametrize("rows", [2 * FRAMES + 1, 4 * FRAMES, 2])
def test_another_number_of_frames_is_refused(rows) -> None:
    with pytest.raises(InvalidInputError, match=r"each of 4 frames and expects \[videos x fra"):
        quantizer(2)(torch.randn(rows, 3))


def test_a_single_range_puts_it_back() -> None:
    made = quantizer(2)
    made.set_range(Range(torch.tensor(0.1), torch.tensor(8.0)))
    assert made(torch.randn(5, 3)).shape == (5, 3) and made.frames == 0
