import math
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from tiny_diffusion import STEPS, images, new_pipeline, sampler

import dqlab
from dqlab import recipe
from dqlab.errors import InvalidInputError
from dqlab.formats import Affine, Format, Range
from dqlab.layers import Quantizer, StepContext, quantizers
from dqlab.methods import step_networks
from dqlab.methods.step_networks import Samples, StepNetworks, fit_networks
from dqlab.methods.unet_dynamic.tdq import Grid
from dqlab.reference import tdq as paper
from dqlab.trajectory import record

QUICK = {"warm": 3, "updates": 3}
BEST = 0.3534  # optimal 4-bit step of a unit Gaussian
GRIDS = [Grid(4), Grid(8), Grid(4, silu=True)]


@pytest.fixture(autouse=True, scope="module")
def _few_values():
    """The tiny models' tests are about mechanism, not about how well tails are sampled."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_networks, "VALUES", 256)
        yield


def one_range(s: float) -> Range:
    return Range(torch.tensor(s), torch.tensor(0.0))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_grids_compute_the_papers_formulas(grid) -> None:
    x, s = torch.linspace(-4, 4, 999), 0.3
    quantize = paper.quantize_silu if grid.silu else paper.quantize_signed
    x_hat = grid.fake_quant(x, one_range(s))
    torch.testing.assert_close(x_hat, quantize(x, torch.tensor(s), grid.bits))
    assert torch.equal(grid.decode(grid.encode(x, one_range(s)), one_range(s)), x_hat)
    levels = grid.levels(one_range(s))
    assert len(levels) == 2**grid.bits - (not grid.silu)
    assert all(bool((levels == v).any()) for v in x_hat.unique())
    assert Format.from_dict(grid.to_dict()) == grid


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_gradients_are_lsqs(grid) -> None:
    x = torch.linspace(-9, 9, 101)
    s = torch.tensor(0.7, requires_grad=True)
    grid.fake_quant(x, Range(s, torch.tensor(0.0))).sum().backward()
    low, high = grid._bounds(torch.tensor(0.0))
    u = (x - grid.origin) / 0.7
    slope = torch.where((u >= low) & (u <= high), u.round() - u, u.clamp(low, high))
    assert float(s.grad) == pytest.approx(float(slope.sum()), rel=1e-4)


def test_the_range_of_a_grid_reaches_the_largest_value() -> None:
    x = torch.tensor([-0.2, 3.0, -3.5])
    for grid in GRIDS:
        r = grid.params(x.min(), x.max())
        top = grid.levels(r)[-1]
        assert float(top) == pytest.approx(3.0 if grid.silu else 3.5, rel=1e-6)
    zero = grid.params(torch.tensor(0.0), torch.tensor(grid.origin))
    assert zero.scale == 1e-8


def test_networks_begin_near_their_start_and_are_seeded() -> None:
    start, t = torch.tensor([0.05, 2.0]), torch.arange(0.0, 1000.0, 40.0)
    s = StepNetworks(24, start, seed=1)(t)
    assert s.shape == (2, 25)
    assert (s / start[:, None] - 1).abs().max() < 0.1
    assert torch.equal(StepNetworks(24, start, seed=1)(t), s)
    assert not torch.equal(StepNetworks(24, start, seed=2)(t), s)


def test_networks_equal_the_formula() -> None:
    networks, t = StepNetworks(8, torch.tensor([0.1, 0.4])), torch.tensor([0.0, 300.0, 999.0])
    for site in (0, 1):
        weights = [W[site].T for W in networks.weights]
        biases = [b[site, 0] for b in networks.biases]
        expected = paper.step_size(paper.encoding(t, 8), weights, biases)
        torch.testing.assert_close(networks(t)[site], expected)


def test_dropout_acts_in_training_only() -> None:
    networks, t = StepNetworks(8, torch.tensor([1.0]), dropout=0.2), torch.arange(0.0, 900.0, 9.0)
    assert not torch.equal(networks.train()(t), networks.train()(t))
    assert torch.equal(networks.eval()(t), networks.eval()(t))


def test_a_step_size_does_not_depend_on_its_neighbours() -> None:
    networks, t = StepNetworks(24, torch.rand(3) + 0.1), torch.arange(0.0, 1000.0, 50.0)
    alone = torch.cat([networks(one[None]) for one in t], 1)
    assert torch.equal(alone.float(), networks(t).float())


def drifting(sigma: torch.Tensor, count: int = 2048) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, len(sigma), count, generator=generator) * sigma[:, None]


@cache
def tracked():
    """Networks fitted to N(0, (0.5 + 4 t / T)^2) at 4 bits and 100 steps."""
    t = torch.arange(0.0, 1000.0, 10.0)
    return fit_networks(drifting(0.5 + 4 * t / 1000), [Grid(4)], t, 128, (200, 300)), t


def test_step_sizes_track_a_gaussian() -> None:
    networks, t = tracked()
    for times, mean in ((t, 0.05), (t[:-1] + 5, 0.06)):
        best = BEST * (0.5 + 4 * times / 1000)
        off = (networks(times)[0] / best - 1).abs()
        assert off.mean() < mean
        if times is t:
            assert off.max() < 0.12


def gaussian_error(s: float) -> float:
    """E (x - xhat)^2 of N(0, 1) at 4 bits, by numerical integration."""
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weight = torch.exp(-0.5 * x**2)
    error = (x - paper.quantize_signed(x, torch.tensor(s).double(), 4)) ** 2
    return float((error * weight).sum() / weight.sum())


def test_the_gain_over_a_static_step_is_what_theory_says() -> None:
    """An activation eight times as wide at the first step as at the last, geometrically.

    The table's error at every step is that of the best step for its own width; the best static
    step pays at both ends. Both follow from the Gaussian integral.
    """
    t = torch.linspace(999, 49, 20).round()
    sigma = 0.25 * 8 ** (t / 999)
    values = drifting(sigma, 4096)
    table = fit_networks(values, [Grid(4)], t, 24, (300, 200))(t)[0].detach().float()
    candidates = [0.02 * 1.05**k for k in range(70)]

    def relative(s: float) -> float:
        return sum(gaussian_error(s / float(w)) for w in sigma) / len(sigma)

    static = min(candidates, key=relative)
    theory = 10 * math.log10(relative(static) / gaussian_error(BEST))

    def measured(s: torch.Tensor) -> float:
        x_hat = Grid(4).fake_quant(values[0], Range(s, torch.zeros_like(s)))
        return float(paper.normalized_error(values[0], x_hat).mean())

    fixed = torch.full((20, 1), static)
    gain = 10 * math.log10(measured(fixed) / measured(table[:, None]))
    assert theory > 2
    assert gain == pytest.approx(theory, abs=0.3)


def test_silent_activations_stay_silent() -> None:
    t = torch.tensor([900.0, 500.0, 100.0])
    s = fit_networks(torch.zeros(1, 3, 64), [Grid(4)], t, 8, (3, 3))(t)[0].float()
    assert s.isfinite().all() and (s > 0).all()
    assert (Grid(4).fake_quant(torch.zeros(3), Range(s, torch.zeros(3))) == 0).all()


@cache
def made():
    """A tiny pipeline with TDQ at W8A4."""
    return dqlab.quantize(new_pipeline(), recipe("tdq", **QUICK), 8, 4, sampler=sampler())


def test_every_activation_but_the_softmax_has_a_row_per_step() -> None:
    sites = quantizers(made().unet)
    for site, quantizer in sites.items():
        if site.endswith((".weight", ".p")):
            assert isinstance(quantizer.format, Affine) and not quantizer.per_step, site
        else:
            assert isinstance(quantizer.format, Grid) and quantizer.per_step, site
            assert quantizer.scale.shape == (STEPS,) and (quantizer.scale > 0).all()
    assert sites["conv_in.input"].format.bits == 8
    assert sites["mid_block.resnets.0.conv1.input"].format.bits == 4


def test_sites_behind_silu_are_found() -> None:
    """In this U-Net: what follows a norm in a residual block, and what takes the time."""
    for site, quantizer in quantizers(made().unet).items():
        if isinstance(quantizer.format, Grid):
            ends = ("conv1.input", "conv2.input", "time_emb_proj.input", "linear_2.input")
            assert quantizer.format.silu == site.endswith((*ends, "conv_out.input")), site


def test_rows_at_other_steps_use_their_own_scale() -> None:
    unet, x = made().unet, torch.randn(STEPS, 3, 8, 8)
    t = unet.step_context.schedule.flip(0)
    with torch.no_grad():
        together = unet(x, t).sample
        alone = torch.cat([unet(x[i : i + 1], t[i]).sample for i in range(STEPS)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    context = StepContext()
    context.bind(torch.tensor([9.0, 5.0]))
    quantizer = Quantizer("a.input", context)
    quantizer.format = Grid(4)
    quantizer.set_range(Range(torch.tensor([0.1, 0.5]), torch.zeros(2)), per_step=True)
    context.timestep = torch.tensor([5.0, 9.0]).double()
    both = quantizer(x[:2])
    for row, s in ((0, 0.5), (1, 0.1)):
        assert torch.equal(both[row], Grid(4).fake_quant(x[row], one_range(s)))


def test_off_the_grid_it_says_so() -> None:
    with pytest.raises(InvalidInputError, match="not among the 3 steps"):
        images(made(), steps=4)


def test_saved_and_loaded_it_is_the_same(tmp_path) -> None:
    made().save_pretrained(tmp_path / "q")
    again = dqlab.load(tmp_path / "q")
    assert torch.equal(images(again), images(made()))
    assert quantizers(again.unet)["conv_out.input"].format == Grid(8, silu=True)


def test_the_same_call_gives_the_same_table() -> None:
    again = dqlab.quantize(new_pipeline(), recipe("tdq", **QUICK), 8, 4, sampler=sampler())
    pairs = zip(quantizers(again.unet).values(), quantizers(made().unet).values(), strict=True)
    assert all(torch.equal(a.scale, b.scale) for a, b in pairs)


def test_samples_cover_every_step_and_every_batch() -> None:
    """Two batches share step 0; their values are kept in proportion to their rows."""
    context = StepContext()
    context.bind(torch.tensor([9.0, 5.0]))
    t = torch.tensor([9.0, 9.0, 5.0, 9.0])
    job = SimpleNamespace(context=context, calibration=SimpleNamespace(t=t), seed=0)
    samples = Samples("a.input", job)
    for rows in (slice(0, 3), slice(3, 4)):
        context.timestep, context._step = t[rows].double(), None
        x = torch.arange(4.0)[rows, None].expand(-1, 50)
        samples.update(x)
    values = samples.values()
    assert values[1].unique().tolist() == [2.0]
    assert values[0].unique().tolist() == [0.0, 1.0, 3.0]
    assert (values[0] == 3).float().mean() == pytest.approx(1 / 3, abs=0.1)
    assert values.shape == (2, step_networks.VALUES)


def test_missing_steps_and_bad_values_are_refused() -> None:
    pipe = new_pipeline()
    states, _ = record(pipe, range(2), sampler())
    with pytest.raises(InvalidInputError, match=r"no calibration data at sampling steps \[1\]"):
        dqlab.quantize(
            pipe, recipe("tdq", **QUICK), 8, 4, sampler=sampler(),
            calibration=states[states.step != 1],
        )  # fmt: skip


@pytest.mark.parametrize("activations", [None, "fp8"])
def test_activations_must_be_bits(activations) -> None:
    with pytest.raises(InvalidInputError, match="tdq places its own uniform grids"):
        dqlab.quantize(new_pipeline(), "tdq", 8, activations, sampler=sampler())


def test_its_fit_alone_has_nothing_to_fit() -> None:
    with pytest.raises(InvalidInputError, match="no site with one of its own grids"):
        dqlab.quantize(new_pipeline(), recipe("tdq").only("fit"), 8, 8, sampler=sampler())


def test_the_encoding_is_as_wide_as_the_networks_own() -> None:
    from diffusers import DiTTransformer2DModel

    assert step_networks.encoding_width(new_pipeline().unet) == 8
    dit = DiTTransformer2DModel(
        2, 8, in_channels=4, num_layers=1, sample_size=4, patch_size=1, num_embeds_ada_norm=10
    )
    assert step_networks.encoding_width(dit) == 256
    assert step_networks.encoding_width(torch.nn.Linear(2, 2)) == 128


def test_options_are_checked() -> None:
    with pytest.raises(InvalidInputError, match="updates=0"):
        recipe("tdq", updates=0)


def test_a_training_loss_reaches_the_networks_row_by_row() -> None:
    """Each sample's own timestep gives its step size; the gradient to s is LSQ's, unscaled."""
    networks, t = StepNetworks(8, torch.tensor([0.3])), torch.tensor([900.0, 300.0])
    x = torch.randn(2, 3, 4, 4)
    s = networks(t)[0].float().reshape(2, 1, 1, 1)
    s.retain_grad()
    Grid(4).fake_quant(x, Range(s, torch.zeros_like(s))).sum().backward()
    expected = paper.step_gradient(x, s.detach(), 7).sum((1, 2, 3), keepdim=True)
    torch.testing.assert_close(s.grad, expected, rtol=1e-4, atol=1e-4)
    assert all(bool((p.grad != 0).any()) for p in networks.parameters())
