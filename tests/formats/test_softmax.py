import pytest
import torch

from dqlab.formats import Format, Range
from dqlab.formats.softmax import CorrectedSoftmax
from dqlab.reference import softmax_bias_correction as paper


def probabilities(*shape: int):
    P = torch.randn(shape, generator=torch.Generator().manual_seed(0)).softmax(-1)
    P[..., -3:] = 0
    return P / P.sum(-1, keepdim=True)


def unit(bits: int, delta) -> Range:
    return Range(torch.tensor(1 / (2**bits - 1)), torch.as_tensor(delta))


@pytest.mark.parametrize("own_row", [False, True])
@pytest.mark.parametrize("delta", [0.0, -0.05, 0.6])
def test_fake_quant_is_a_round_trip_through_codes(own_row, delta) -> None:
    fmt, x, r = CorrectedSoftmax(4, own_row), probabilities(2, 3, 5, 67), unit(4, delta)
    codes = fmt.encode(x, r)
    assert codes.dtype == torch.int32 and codes.min() == -1 and codes.max() <= 15
    torch.testing.assert_close(fmt.decode(codes, r), fmt.fake_quant(x, r), rtol=0, atol=1e-7)
    assert (fmt.fake_quant(x, r)[..., -3:] == 0).all()


def test_it_is_the_papers_sum() -> None:
    x, delta = probabilities(2, 3, 5, 67), torch.tensor([0.1, 0.2, 0.3]).reshape(3, 1, 1)
    expected = paper.corrected(paper.quantize(x, 1 / 15, 4), delta, x > 0)
    found = CorrectedSoftmax(4).fake_quant(x, unit(4, delta))
    torch.testing.assert_close(found, expected)


def test_without_mass_it_is_the_plain_grid() -> None:
    x, r = probabilities(2, 8, 67), unit(8, 0.0)
    plain = Format.parse("uint8-zero")
    assert torch.equal(CorrectedSoftmax(8).fake_quant(x, r), plain.fake_quant(x, r))
    assert torch.equal(CorrectedSoftmax(8).levels(r), plain.levels(r))
    high = torch.tensor(0.7)
    found, known = (f.params(torch.zeros(()), high) for f in (CorrectedSoftmax(8), plain))
    assert found.scale == known.scale and found.zero_point == 0


def test_rows_of_their_own_sum_to_one() -> None:
    x = probabilities(4, 67)
    sums = CorrectedSoftmax(4, own_row=True).fake_quant(x, unit(4, 0.0)).sum(-1)
    torch.testing.assert_close(sums, torch.ones(4))


def test_an_empty_row_stays_empty() -> None:
    x = torch.zeros(2, 5)
    assert torch.equal(CorrectedSoftmax(4).fake_quant(x, unit(4, 0.5)), x)


def test_it_is_read_back_by_its_kind() -> None:
    fmt = CorrectedSoftmax(4, own_row=True)
    assert Format.from_dict(fmt.to_dict()) == fmt and str(fmt) == "uint4-softmax-row"


def test_gradients_reach_input_and_step() -> None:
    x = probabilities(3, 9).requires_grad_()
    scale = torch.tensor(1 / 15, requires_grad=True)
    out = CorrectedSoftmax(4).fake_quant(x, Range(scale, torch.tensor(0.2)))
    out.square().sum().backward()
    assert x.grad.isfinite().all() and scale.grad.isfinite()
