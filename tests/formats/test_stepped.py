import pytest
import torch

from dqlab.formats import Affine, Format, Range
from dqlab.formats.stepped import Stepped


def values(*shape: int) -> torch.Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_step_of_fewer_bits_is_the_grid_of_so_many(bits) -> None:
    x = values(4, 5)
    plain = Affine(bits).params(torch.tensor(-2.0), torch.tensor(3.0))
    r, fmt = Stepped.of(plain, bits), Stepped(8)
    assert torch.equal(fmt.fake_quant(x, r), Affine(bits).fake_quant(x, plain))
    assert torch.equal(fmt.encode(x, r), Affine(bits).encode(x, plain))
    assert torch.equal(fmt.decode(fmt.encode(x, r), r), fmt.fake_quant(x, r))
    assert torch.equal(fmt.levels(r).unique(), Affine(bits).levels(plain))
    whole = fmt.params(torch.tensor(-2.0), torch.tensor(3.0))
    assert whole.zero_point.tolist()[1] == 255


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (3, 4, 5, 5)])
def test_rows_are_at_steps_of_their_own(shape) -> None:
    bits = (4, 8)
    low, high = torch.tensor(-2.0), torch.tensor(3.0)
    grids = [Stepped.of(Affine(b).params(low, high), b) for b in bits]
    table = Range(*(torch.stack([getattr(g, n) for g in grids]) for n in ("scale", "zero_point")))
    steps, x = torch.tensor([1, 0, 1]), values(*shape)
    found = Stepped(8).fake_quant(x, table.index(steps, x.ndim))
    for row, step in enumerate(steps.tolist()):
        expected = Affine(bits[step]).fake_quant(x[row], Affine(bits[step]).params(low, high))
        assert torch.equal(found[row], expected)


def test_gradients_stop_where_a_steps_levels_end() -> None:
    x = torch.tensor([[0.5, 100.0]], requires_grad=True)
    scale = torch.tensor(0.1, requires_grad=True)
    r = Range(scale, torch.tensor([8.0, 15.0]))
    Stepped(8).fake_quant(x, r).sum().backward()
    assert x.grad.tolist() == [[1.0, 0.0]] and scale.grad.isfinite()


def test_it_is_read_back_by_its_kind() -> None:
    assert Format.from_dict(Stepped(8).to_dict()) == Stepped(8)
    assert str(Stepped(8)) == "uint8-stepped"
