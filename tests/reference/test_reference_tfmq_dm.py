import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.formats import Affine
from dqlab.reference import tfmq_dm as paper
from dqlab.reference.adaround import beta_at


def layer(out: int, inside: int):
    return torch.randn(out, inside), torch.randn(out)


def test_features_are_the_two_layers_and_each_projection() -> None:
    I, L1, L2, g = torch.randn(5, 4), layer(6, 4), layer(6, 6), [layer(3, 6), layer(7, 6)]  # noqa: E741
    silu = torch.nn.functional.silu
    h = silu(I @ L1[0].T + L1[1]) @ L2[0].T + L2[1]
    found = paper.temporal_features(I, L1, L2, g)
    for one, (W, b) in zip(found, g, strict=True):
        torch.testing.assert_close(one, silu(h) @ W.T + b)


def test_the_loss_sums_over_blocks_and_channels_and_averages_over_steps() -> None:
    E = [torch.zeros(4, 3), torch.zeros(4, 5)]
    E_hat = [torch.ones(4, 3), torch.full((4, 5), 2.0)]
    assert float(paper.tiar_loss(E, E_hat)) == pytest.approx(3 + 4 * 5)
    assert float(paper.tiar_loss(E, E)) == 0


@pytest.mark.parametrize("b", [4, 6, 8])
def test_no_element_of_a_step_is_clipped_or_off_by_more_than_half_a_step(b) -> None:
    x = (
        torch.randn(20, 64) * torch.logspace(0, -2, 20)[:, None]
        + torch.linspace(-1, 1, 20)[:, None]
    )
    s, z = paper.finite_set_ranges(x.amin(1), x.amax(1), b)
    x_hat = paper.quantize(x, s[:, None], z[:, None], b)
    # Rounding the zero point moves the ends by up to half a step too.
    assert ((x_hat - x).abs() <= s[:, None] * (1 + 1e-4)).all()
    inside = (x >= -z[:, None] * s[:, None]) & (x <= (2**b - 1 - z)[:, None] * s[:, None])
    assert ((x_hat - x).abs() <= s[:, None] / 2 * (1 + 1e-4))[inside].all()
    assert torch.equal(s, Affine(b).params(x.amin(1), x.amax(1)).scale)
    assert torch.equal(z, Affine(b).params(x.amin(1), x.amax(1)).zero_point)


@pytest.mark.parametrize(
    ("low", "high", "z"), [(0.0, 0.0, 0), (2.0, 2.0, 0), (-5.0, -2.0, 15), (-1.0, 14.0, 1)]
)
def test_ranges_of_odd_steps_are_finite_and_hold_zero(low, high, z) -> None:
    s, found = paper.finite_set_ranges(torch.tensor(low), torch.tensor(high), 4)
    assert s > 0 and s.isfinite() and found == z


def test_one_range_for_all_steps_is_the_static_one() -> None:
    x = torch.randn(6, 10)
    low, high = x.min().expand(6), x.max().expand(6)
    s, z = paper.finite_set_ranges(low, high, 4)
    one = Affine(4).params(x.min(), x.max())
    found = paper.quantize(x, s[:, None], z[:, None], 4)
    torch.testing.assert_close(found, Affine(4).fake_quant(x, one))


def test_cosine_of_zero_vectors_is_defined() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert paper.cosine(zero, zero) == 1
    assert paper.cosine(zero, one) == 0 == paper.cosine(one, zero)
    assert float(paper.cosine(one, -one)) == pytest.approx(-1)


def test_the_perceived_step_of_unchanged_features_is_the_step() -> None:
    E = torch.eye(7)
    assert paper.perceived_step(E, E).tolist() == list(range(7))
    E = torch.randn(7, 20)
    scales = torch.rand(7, 1) + 0.1
    assert paper.perceived_step(E, scales * E).tolist() == list(range(7))


@pytest.mark.parametrize("k", [-3, -1, 2])
def test_a_planted_shift_of_steps_is_found(k) -> None:
    E = torch.randn(12, 24)
    t = torch.arange(3, 9)
    assert paper.perceived_step(E, E[t + k]).tolist() == (t + k).tolist()


def test_the_nearest_by_distance_is_another_question() -> None:
    """Cosine does not mind that a feature shrank; Euclidean distance does."""
    E = torch.tensor([[0.1, 0.0], [0.0, 10.0]])
    shrunk = torch.tensor([[0.0, 0.3]])
    assert paper.perceived_step(E, shrunk).tolist() == [1]
    assert torch.cdist(shrunk, E).argmin() == 0


def test_features_of_other_blocks_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"\(3, 4\) and \(3, 5\)"):
        paper.perceived_step(torch.ones(3, 4), torch.ones(3, 5))


def test_the_better_of_two_features_is_chosen_step_by_step() -> None:
    E = torch.ones(3, 4)
    near, far = E + 0.01, E + 0.1
    E_hat = torch.stack([near[0], far[1], E[2]])
    E_cached = torch.stack([far[0], near[1], E[2]])
    assert paper.cache_is_better(E, E_hat, E_cached).tolist() == [False, True, False]
    torch.testing.assert_close(
        paper.relative_error(E, far), torch.full((3,), 0.01).double(), rtol=1e-5, atol=0
    )
    assert paper.relative_error(torch.zeros(1, 2), torch.zeros(1, 2)) == 0


def test_beta_falls_from_20_to_2_after_the_warm_up() -> None:
    found = [beta_at(k, 1000) for k in (200, 400, 600, 800, 1000)]
    assert found == pytest.approx([20, 15.5, 11, 6.5, 2])
    assert beta_at(199, 1000) is None
