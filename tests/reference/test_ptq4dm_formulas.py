"""PTQ4DM's distribution of time steps: its spikes at both ends, its mean, its edge cases."""

import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine
from dqlab.ranges import Ema
from dqlab.reference.ptq4dm import time_shares, time_steps


def drawn(N: int, T: int, mu: float = 0.4, sigma: float = 0.4, seed: int = 0) -> torch.Tensor:
    return time_steps(N, T, mu, sigma, torch.Generator().manual_seed(seed))


def test_what_falls_outside_gathers_at_both_ends() -> None:
    """Phi(-1) lies below 0 and Phi(-1.5) above T; the end bin at 0 holds its own share besides.

    Clamping moves the mean of 100 by 100 (phi(1) - Phi(-1)) = 8.3 up and by 100 (phi(1.5) -
    1.5 Phi(-1.5)) = 2.9 down; flooring moves what lies inside by half a step.
    """
    t = drawn(100_000, 250)
    inside = time_shares(250)[1]
    assert t.min() == 0
    assert t.max() == 249
    assert float((t == 0).double().mean() - inside) == pytest.approx(0.159, abs=0.01)
    assert float((t == 249).double().mean()) == pytest.approx(0.067, abs=0.01)
    assert float(t.double().mean()) == pytest.approx(105, abs=1.3)


@pytest.mark.parametrize(("mu", "sigma"), [(0.4, 0.4), (0.5, 0.1), (0.0, 0.2), (1.0, 0.3)])
def test_draws_follow_their_shares(mu: float, sigma: float) -> None:
    """Five standard errors of a share of N draws."""
    N, shares = 50_000, time_shares(20, mu, sigma)
    assert float(shares.sum()) == pytest.approx(1)
    found = drawn(N, 20, mu, sigma).bincount(minlength=20) / N
    allowed = 5 * (shares * (1 - shares) / N).sqrt() + 1 / N
    assert bool(((found - shares).abs() <= allowed).all())


def test_the_mean_lies_on_the_side_that_mu_names() -> None:
    middle = [float(drawn(2_000, 100, mu, 0.1).double().median()) for mu in (0.2, 0.5, 0.8)]
    assert middle == pytest.approx([20, 50, 80], abs=2)


@pytest.mark.parametrize("mu", [0.0, 0.4, 0.73, 1.0])
def test_without_spread_there_is_one_step(mu: float) -> None:
    at = min(int(mu * 50), 49)
    assert drawn(7, 50, mu, 0.0).tolist() == [at] * 7
    assert time_shares(50, mu, 0.0)[at] == 1


def test_one_sample_and_one_step_work_and_draws_repeat() -> None:
    assert len(drawn(1, 250)) == 1
    assert drawn(5, 1).tolist() == [0] * 5
    assert time_shares(1).tolist() == [1.0]
    assert torch.equal(drawn(64, 250, seed=3), drawn(64, 250, seed=3))
    assert not torch.equal(drawn(64, 250, seed=3), drawn(64, 250, seed=4))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mu": 1.5}, "mu is 1.5"),
        ({"mu": -0.1}, "mu is -0.1"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"sigma": float("nan")}, "sigma"),
        ({"N": 0}, "0 calibration samples"),
        ({"T": 0}, "T is 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        time_steps(**{"N": 4, "T": 10} | settings)


def test_the_moving_average_starts_with_the_first_batch() -> None:
    """Ranges 1, 2, 4 become 1.0, 1.1 and 1.39."""
    seen, found = Ema("min_max", Affine(8, "sym_offset")), []
    for top in (1.0, 2.0, 4.0):
        seen.update(torch.tensor([-top, top]))
        found.append(float(seen.range(Affine(8, "sym_offset")).scale) * 255 / 2)
    assert found == pytest.approx([1.0, 1.1, 1.39], rel=1e-5)
