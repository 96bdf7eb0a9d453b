import pytest
import torch

from dqlab.reference import tdq


def test_the_encoding_is_cosines_then_sines() -> None:
    e = tdq.encoding(torch.tensor([0.0, 7.0]), 6)
    omega = torch.tensor([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)], dtype=torch.float64)
    torch.testing.assert_close(e[0], torch.tensor([1.0, 1, 1, 0, 0, 0]).double())
    torch.testing.assert_close(e[1], torch.cat([(7 * omega).cos(), (7 * omega).sin()]))


def test_softplus_and_its_inverse_are_exact_at_both_ends() -> None:
    s = torch.tensor([1e-6, 1e-3, 1.0, 50.0, 200.0], dtype=torch.float64)
    z = tdq.inverse_softplus(s)
    assert z.isfinite().all()
    torch.testing.assert_close(
        torch.nn.functional.softplus(z, threshold=1e9), s, rtol=1e-5, atol=0
    )


def test_a_last_layer_of_zeros_gives_its_bias_at_every_timestep() -> None:
    e = tdq.encoding(torch.arange(0.0, 1000.0, 50.0), 8)
    weights = [torch.randn(64, 8).double(), torch.zeros(1, 64).double()]
    biases = [torch.randn(64).double(), tdq.inverse_softplus(torch.tensor([0.05]).double())]
    s = tdq.step_size(e, weights, biases)
    torch.testing.assert_close(s, torch.full((20,), 0.05).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("b", [2, 4, 8])
def test_grids_have_the_levels_they_should(b) -> None:
    x, s = torch.linspace(-9, 9, 4001), torch.tensor(0.1 if b == 8 else 0.5)
    for quantize, codes in ((tdq.quantize_signed, 2**b - 1), (tdq.quantize_silu, 2**b)):
        x_hat = quantize(x, s, b)
        assert len(x_hat.unique()) <= codes
        torch.testing.assert_close(quantize(x_hat, s, b), x_hat)
        inside = (x > x_hat.min()) & (x < x_hat.max())
        assert (x - x_hat)[inside].abs().max() <= s / 2 + 1e-6


def test_the_silu_grid_begins_at_silus_minimum() -> None:
    x = torch.linspace(-10, 10, 100_001)
    assert abs(torch.nn.functional.silu(x).min() - tdq.SILU_MINIMUM) < 1e-6
    low = torch.tensor(tdq.SILU_MINIMUM)
    assert torch.equal(tdq.quantize_silu(low, torch.tensor(0.3), 4), low)
    assert (tdq.quantize_silu(x, torch.tensor(0.3), 4) >= low).all()


@pytest.mark.parametrize(("x", "slope"), [(1.3, -0.3), (9.0, 7.0), (-9.0, -7.0)])
def test_step_gradient_is_lsqs(x, slope) -> None:
    one = torch.tensor(1.0)
    assert float(tdq.step_gradient(torch.tensor(x), one, 7)) == pytest.approx(slope, abs=1e-6)


def test_the_correlation_is_pearsons_and_0_where_nothing_moves() -> None:
    t = torch.linspace(999, 49, 20)
    assert tdq.time_correlation(t, 3 + 2 * t) == (pytest.approx(1), True)
    assert tdq.time_correlation(t, 5000 - 2 * t) == (pytest.approx(-1), True)
    assert tdq.time_correlation(t, torch.full((20,), 0.3)) == (0.0, False)
    assert tdq.time_correlation(t, torch.zeros(20)) == (0.0, False)


def test_the_error_is_relative_to_each_steps_power() -> None:
    x = torch.tensor([[1.0, -1.0], [10.0, -10.0], [0.0, 0.0]])
    found = tdq.normalized_error(x, torch.tensor([[0.5, -0.5], [5.0, -5.0], [0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([0.25, 0.25, 0.0]))
