import pytest
import torch

from dqlab.errors import InvalidInputError
from dqlab.reference import tac_diffusion as tac

DRAWS = 1_000_000


def coefficient(q, r, lambda1=0.5, lambda2=0.1, tau=1.0):
    sums = tac.reconstruction_sums(q, r, tac.relative_mask(r, tau))
    return tac.reconstruction_coefficient(sums, lambda1, lambda2)


def normal(*shape: int, seed: int = 0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("lambda1", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_an_exact_multiple_is_undone(lambda1, tau) -> None:
    r = normal(4, 3, 8, 8)
    c = torch.tensor([1.25, 0.8, 1.0], dtype=torch.float64)
    K = coefficient(c.reshape(3, 1, 1) * r, r, lambda1, 0.0, tau)
    torch.testing.assert_close(K, 1 / c, rtol=1e-6, atol=0)


def test_the_last_term_pulls_to_one() -> None:
    r = normal(4, 3, 8, 8)
    assert (coefficient(1.5 * r, r, lambda2=1e9) - 1).abs().max() < 1e-6
    assert torch.equal(coefficient(r, r), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(("c", "s"), [(1.25, 0.1), (0.9, 0.3)])
def test_noise_shrinks_the_coefficient_as_theory_says(c, s) -> None:
    """The last term makes it (K_0 below + lambda2) / (below + lambda2)."""
    r, n = normal(2, DRAWS, 1, 1)
    q = c * r + s * n
    q, r = q[..., None], r[..., None]
    mask = tac.relative_mask(r)
    over = (mask / r.square().where(mask, 1.0)).mean()
    share = mask.double().mean()
    squared = coefficient(q, r, 0.0, 0.0)
    assert abs(squared - c / (c * c + s * s)) < 0.01
    alone = coefficient(q, r, 1.0, 0.0)
    assert abs(alone - c * share / (c * c * share + s * s * over)) < 0.01
    below = 0.5 * (c * c + s * s) + 0.5 * (c * c * share + s * s * over)
    both = 0.5 * c + 0.5 * c * share
    assert abs(coefficient(q, r, 0.5, 0.1) - (both + 0.1) / (below + 0.1)) < 0.005


def test_the_published_example() -> None:
    r, n = normal(2, DRAWS, 1, 1)
    q, r = (1.25 * r + 0.1 * n)[..., None], r[..., None]
    assert abs(coefficient(q, r, 0.5, 0.0) - 0.795) < 0.002
    assert abs(coefficient(q, r, 0.5, 0.1) - 0.812) < 0.002


def test_the_gradient_is_zero_there_and_no_point_is_lower() -> None:
    r, n = normal(2, 500, 2, 4, 4)
    q, m = 1.1 * r + 0.2 * n, tac.relative_mask(r, 0.5)
    K = coefficient(q, r, tau=0.5).requires_grad_()
    loss = tac.reconstruction_loss(K, q, r, m)
    (slope,) = torch.autograd.grad(loss.sum(), K, create_graph=True)
    assert slope.abs().max() < 1e-6
    (bend,) = torch.autograd.grad(slope.sum(), K)
    assert (bend > 0).all()
    for shift in (-0.1, -0.01, 0.01, 0.1):
        assert (tac.reconstruction_loss(K + shift, q, r, m) > loss).all()


def test_parts_add_up_and_their_order_does_not_matter() -> None:
    r, n = normal(2, 12, 3, 4, 4)
    q, m = r + 0.1 * n, tac.relative_mask(r)
    whole = tac.reconstruction_sums(q, r, m)
    parts = [tac.reconstruction_sums(q[s], r[s], m[s]) for s in (slice(5, 12), slice(0, 5))]
    torch.testing.assert_close(sum(parts), whole)


def test_what_nothing_decides_stays_one() -> None:
    r = normal(4, 2, 3, 3)
    zero = torch.zeros_like(r)
    with pytest.warns(UserWarning, match="It stays 1"):
        assert torch.equal(coefficient(zero, r, lambda2=0.0), torch.ones(2, dtype=torch.float64))
    with pytest.warns(UserWarning, match="It stays 1"):
        assert (coefficient(r, zero, 1.0, 0.0) == 1).all()
    assert (coefficient(r, zero, 0.5, 0.0) == 0).all()  # the relative term drops out


@pytest.mark.parametrize("weights", [(-0.1, 0.1), (1.1, 0.1), (0.5, -1.0)])
def test_weights_are_checked(weights) -> None:
    with pytest.raises(InvalidInputError, match="lambda1 in"):
        coefficient(normal(2, 1, 2, 2), normal(2, 1, 2, 2, seed=1), *weights)


def test_bias_is_what_the_chains_differ_by() -> None:
    x, b = normal(6, 3, 4, 4), normal(3, 4, 4, seed=2)
    torch.testing.assert_close(tac.input_bias(x + b, x), b)
    channel = tac.input_bias(x + b, x, "channel")
    torch.testing.assert_close(channel, b.mean((1, 2), keepdim=True))


def test_an_error_at_one_step_grows_by_the_schedule() -> None:
    alphas = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.98], dtype=torch.float64)
    n = torch.zeros(4, 3, dtype=torch.float64)
    n[1] = torch.tensor([0.3, -0.1, 0.0])
    C = tac.ddim_coefficients(alphas[1], alphas[2])[1]
    expected = C * n[1] * (alphas[-1] / alphas[2]).sqrt()
    assert C < 0
    torch.testing.assert_close(tac.propagated(n, alphas), expected, rtol=1e-5, atol=0)
