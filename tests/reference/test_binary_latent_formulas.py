import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from dqlab.errors import InvalidInputError, UnknownNameError
from dqlab.reference import binary_latent_diffusion as paper

T = 64


def coins(*shape: int) -> torch.Tensor:
    return torch.randint(2, shape).double()


def test_linear_schedule_is_a_straight_line() -> None:
    K, t = paper.keep(T), torch.arange(T + 1)
    torch.testing.assert_close(K, 1 - t.double() / T, atol=1e-6, rtol=0)
    torch.testing.assert_close((1 - K) / 2, t.double() / (2 * T), atol=1e-6, rtol=0)
    one_step = (T - t[1:]) / (T - t[1:] + 1)
    torch.testing.assert_close(one_step.double().cumprod(0), K[1:], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", paper.SCHEDULES)
def test_every_schedule_falls_from_one_to_zero(name) -> None:
    K = paper.keep(T, name)
    assert K[0] == 1
    assert abs(K[T]) < 1e-12
    assert (K.diff() < 0).all()
    assert paper.keep(T, "cosine")[T // 2] == pytest.approx(0.5)


def test_bad_schedules_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"T=1; .*at least 2"):
        paper.keep(1)
    with pytest.raises(UnknownNameError, match="'cos'; there are linear, cosine, sigmoid"):
        paper.keep(T, "cos")


def test_two_jumps_are_one() -> None:
    K, x_0 = paper.keep(T), coins(50)
    x_s = paper.marginal(x_0, K[20])
    torch.testing.assert_close(paper.marginal(x_s, K[50] / K[20]), paper.marginal(x_0, K[50]))


def test_noise_flips_each_bit_with_probability_b() -> None:
    """Three standard errors of 20,000 draws, at eight timesteps."""
    K, x_0 = paper.keep(T), coins(20_000)
    for t in range(8, T + 1, 8):
        x_t = (torch.rand(20_000) < paper.marginal(x_0, K[t])).double()
        b = float((1 - K[t]) / 2)
        error = 3 * math.sqrt(b * (1 - b) / 20_000)
        assert float(paper.flips(x_0, x_t).mean()) == pytest.approx(b, abs=error)


def test_flip_prediction_is_a_change_of_sign() -> None:
    l = torch.tensor([-50.0, -3.0, 0.0, 0.5, 50.0]).double()  # noqa: E741
    for x_t in (0.0, 1.0):
        for x_0 in (0.0, 1.0):
            clean, noisy = torch.full_like(l, x_0), torch.full_like(l, x_t)
            direct = bce(paper.clean_logit(l, noisy), clean, reduction="none")
            flip = bce(l, paper.flips(clean, noisy), reduction="none")
            assert direct.isfinite().all()
            torch.testing.assert_close(direct, flip, atol=1e-6, rtol=0)


def test_clean_probability_weighs_keeping_against_flipping() -> None:
    l, x_t = torch.randn(100).double(), coins(100)  # noqa: E741
    flip = torch.sigmoid(l / 0.7)
    expected = x_t * (1 - flip) + (1 - x_t) * flip
    torch.testing.assert_close(paper.clean_probability(l, x_t, 0.7), expected)
    with pytest.raises(InvalidInputError, match="temperature=0"):
        paper.clean_probability(l, x_t, 0)


def test_guidance_of_zero_is_the_conditional_answer() -> None:
    cond, null = torch.randn(2, 5)
    assert torch.equal(paper.guided(cond, null, 0.0), cond)
    torch.testing.assert_close(paper.guided(cond, null, 2.0), null + 3 * (cond - null))


@pytest.mark.parametrize("posterior", paper.POSTERIORS.values())
def test_posteriors_at_their_ends(posterior) -> None:
    K, p0, x_t = paper.keep(T), torch.rand(200).double(), coins(200)
    b = (1 - K[40]) / 2
    from_noise = posterior(p0, x_t, K[T], K[40])
    torch.testing.assert_close(from_noise, K[40] * p0 + b)
    torch.testing.assert_close(posterior(p0, x_t, K[1], K[0]), p0)
    middle = posterior(p0, x_t, K[50], K[40])
    assert (middle >= 0).all()
    assert (middle <= 1).all()
    torch.testing.assert_close(posterior(1 - p0, 1 - x_t, K[50], K[40]), 1 - middle)


def test_posteriors_agree_where_the_clean_bit_is_known() -> None:
    K, p0, x_t = paper.keep(T), coins(100), coins(100)
    args = (p0, x_t, K[50], K[40])
    torch.testing.assert_close(paper.posterior_plugin(*args), paper.posterior_mixture(*args))


def chain(pi: float, S: int, posterior, threshold: bool = False) -> float:
    """P(bit = 1) after sampling one bit with a Bayes-optimal network, exactly."""
    K, x = paper.keep(T), torch.tensor([0.0, 1.0]).double()
    p = torch.tensor([0.5, 0.5]).double()  # of x_t = 0 and 1
    visited = [*paper.grid(S, T).tolist(), 0]
    for t, s in pairwise(visited):
        one, zero = (paper.marginal(torch.tensor(c).double(), K[t]) for c in (1.0, 0.0))
        like_1, like_0 = (torch.where(x == 1, q, 1 - q) for q in (one, zero))
        p0 = pi * like_1 / (pi * like_1 + (1 - pi) * like_0)
        up = p0 if s == 0 else posterior(p0, x, K[t], K[s])
        if s == 0 and threshold:
            up = paper.deterministic_code(p0)
        on = (p * up).sum()
        p = torch.stack([1 - on, on])
    return float(p[1])


@pytest.mark.parametrize("S", [4, 16, 64])
@pytest.mark.parametrize(
    ("pi", "plugin"),
    [(0.1, {64: 0.2310, 16: 0.2222, 4: 0.1778}), (0.3, {64: 0.3886, 16: 0.3836, 4: 0.3571}),
     (0.45, {64: 0.4733, 16: 0.4720, 4: 0.4652})],
)  # fmt: skip
def test_one_bit_chain(pi, plugin, S) -> None:
    """The mixture returns the bit's true probability; the plug-in is drawn to 0.5."""
    assert chain(pi, S, paper.posterior_mixture) == pytest.approx(pi, abs=1e-9)
    assert chain(pi, S, paper.posterior_plugin) == pytest.approx(plugin[S], abs=1e-3)


@pytest.mark.parametrize(("pi", "found"), [(0.1, 0.2467), (0.3, 0.3937), (0.45, 0.4744)])
def test_one_bit_chain_with_the_released_last_step(pi, found) -> None:
    assert chain(pi, 64, paper.posterior_plugin, True) == pytest.approx(found, abs=1e-3)


def test_grid_reaches_from_the_last_timestep_to_the_first() -> None:
    assert paper.grid(T, T).tolist() == list(range(T, 0, -1))
    assert paper.grid(2, T).tolist() == [T, 1]
    assert paper.grid(4, T).tolist() == [64, 43, 22, 1]
    for S in (0, 1, T + 1):
        with pytest.raises(InvalidInputError, match=rf"num_inference_steps={S}; .* 2 to 64"):
            paper.grid(S, T)


def test_time_code_depends_on_the_share_of_time_gone() -> None:
    code = paper.time_code(torch.tensor([1.0, 33.0]), T, 6)
    assert code[0].tolist() == [0, 0, 0, 1, 1, 1]
    angle = 2000 * torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)])
    expected = torch.cat([angle.sin(), angle.cos()])
    torch.testing.assert_close(code[1], expected, atol=1e-3, rtol=0)
    half = paper.time_code(torch.tensor([17.0]), 32, 6)
    torch.testing.assert_close(code[1], half[0])


def test_balanced_loss_forgets_the_rate_of_flips() -> None:
    """At a true rate q = m the learned odds are 1; `unbalanced` gives q back."""
    y = torch.zeros(1, 10, 1).double()
    y[:, :2] = 1
    logit = torch.zeros(1, 1, 1).double().requires_grad_()
    (slope,) = torch.autograd.grad(paper.balanced_loss(logit.expand_as(y), y), logit)
    assert abs(float(slope)) < 1e-12
    back = paper.unbalanced(torch.tensor(0.5).double(), torch.tensor(0.2).double())
    assert float(back) == pytest.approx(0.2)


def test_balanced_loss_by_hand() -> None:
    l, y = torch.tensor([[[1.0], [-2.0]]]), torch.tensor([[[1.0], [0.0]]])  # noqa: E741
    each = torch.log1p(torch.exp(torch.tensor([-1.0, -2.0])))
    assert float(paper.balanced_loss(l, y)) == pytest.approx(float(each.mean() / 2))
    assert float(paper.balanced_loss(l, y, focal=-1)) == pytest.approx(float(each.mean()))
    surprise = (1 - torch.exp(-each)) ** 2
    assert float(paper.balanced_loss(l, y, focal=2.0)) == pytest.approx(
        float((surprise * each).mean() / 2)
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_balanced_loss_of_one_kind_of_bit_warns(value) -> None:
    y = torch.full((2, 3, 4), value)
    with pytest.warns(UserWarning, match="its balanced loss is 0"):
        assert float(paper.balanced_loss(torch.randn(2, 3, 4), y)) == 0


def test_variational_loss_is_least_at_the_truth() -> None:
    K, x_0, x_t = paper.keep(T), coins(1, 20, 3), coins(1, 20, 3)
    for t, s in ((30, 20), (1, 0)):
        losses = [
            float(paper.variational_loss(p0, x_0, x_t, K[t], K[s]))
            for p0 in (x_0, 0.9 * x_0 + 0.05, torch.full_like(x_0, 0.5), 1 - x_0)
        ]
        assert losses == sorted(losses)
        assert math.isfinite(losses[-1])


def test_straight_through_passes_the_gradient() -> None:
    p = torch.tensor([0.2, 0.5, 0.7], requires_grad=True)
    z = paper.deterministic_code(p.detach())
    out = paper.straight_through(z, p)
    assert z.tolist() == [0, 0, 1]
    torch.testing.assert_close(out, z)
    out.backward(torch.tensor([1.0, -2.0, 3.0]))
    assert p.grad.tolist() == [1, -2, 3]


def test_embedding_is_linear_and_zero_at_zero() -> None:
    E, (a, b) = torch.randn(5, 7).double(), coins(2, 1, 4, 5)
    assert (paper.embed(torch.zeros(1, 4, 5).double(), E) == 0).all()
    torch.testing.assert_close(paper.embed(a, E) + paper.embed(b, E), paper.embed(a + b, E))


@pytest.mark.parametrize(("N", "C"), [(4, 2), (3, 5), (1, 1), (64, 16)])
def test_packing_round_trip(N, C) -> None:
    z = coins(3, N, C).float()
    packed = paper.pack(z)
    assert packed.shape == (3, math.ceil(N * C / 8))
    assert torch.equal(paper.unpack(packed, N, C), z)


def test_codes_hold_zero_and_one_only() -> None:
    with pytest.raises(InvalidInputError, match=r"reaches from -1 to 1"):
        paper.check_bits(torch.tensor([-1.0, 1.0]))
    with pytest.raises(InvalidInputError, match=r"reaches from 0\.25 to 1"):
        paper.pack(torch.tensor([[[0.25, 1.0]]]))
