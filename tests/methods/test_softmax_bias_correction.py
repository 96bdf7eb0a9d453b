import pytest
import torch
from tiny_diffusion import STEPS, count_calls, images, new_pipeline, sampler

import dqlab
from dqlab import recipe, seeds
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.formats import Affine, Range
from dqlab.layers import Policy, Quantizer, Rule, StepContext, quantizers
from dqlab.methods.unet_correction import softmax_bias_correction as sbc
from dqlab.metrics import error_powers
from dqlab.trajectory import States, record, replay, tapped

pytestmark = pytest.mark.filterwarnings("ignore:.*of its mass to rounding")
SOFTMAX = {
    bits: Policy("softmax only", (Rule("*.p", bits), Rule("*", None))) for bits in (2, 4, 8)
}
"""Policies that quantize the softmax output alone."""


def attentive(**changes):
    """Attention over 64 keys in two heads."""
    kinds = {
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
        "block_out_channels": (16, 16),
    }
    return new_pipeline(**kinds | changes)


@pytest.fixture(scope="module")
def pipe():
    return attentive()


def corrected(pipe, bits: int = 4, **options):
    made = recipe("softmax-bias-correction", **options)
    return dqlab.quantize(pipe, made, 8, 8, sampler=sampler(), policy=SOFTMAX[bits])


def outputs(q) -> list[Quantizer]:
    return [one for site, one in quantizers(q.unet).items() if site.endswith(".p")]


def row_sums(q, states) -> torch.Tensor:
    """Mean row sum of every attention's quantized output, `[A, H]`."""
    found: dict[str, list] = {one.site: [] for one in outputs(q)}

    def see(site, P):
        quantizer = quantizers(q.unet)[site]
        values = quantizer.format.fake_quant(P, quantizer.current(P))
        found[site].append(values.sum(-1).mean((0, 2)))

    with tapped(q.unet, found, see):
        replay(q.unet, states)
    return torch.stack([torch.stack(sums).mean(0) for sums in found.values()])


@pytest.mark.parametrize("granularity", ["head", "head_timestep", "tensor", "row"])
def test_mass_is_given_back_and_the_prediction_is_nearer(pipe, granularity) -> None:
    """Keys outnumber levels fourfold, so nearly flat rows lose nearly everything."""
    states, _ = record(pipe, seeds.HELD_OUT[:4], sampler())
    q, plain = corrected(pipe, granularity=granularity), corrected(pipe)
    for one in outputs(plain):
        one.zero_point.zero_()
    assert ((row_sums(q, states) - 1).abs() < 0.05).all()
    assert (row_sums(plain, states) < 0.5).any(1).sum() == 3  # the fourth has 16 keys
    before, after = (error_powers(states, one.unet)["noise"].sum() for one in (plain, q))
    assert after < before


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [("tensor", (1, 1, 1)), ("head", (2, 1, 1)), ("head_timestep", (STEPS, 2, 1, 1))],
)
def test_granularity_is_the_shape_of_the_table(pipe, granularity, shape) -> None:
    q = corrected(pipe, granularity=granularity)
    assert {tuple(one.zero_point.shape) for one in outputs(q)} == {shape}
    assert all(one.per_step == (len(shape) == 4) for one in outputs(q))
    assert all(one.scale.unique().tolist() == [pytest.approx(1 / 15)] for one in outputs(q))


def test_eight_bits_for_sixty_four_keys_change_little(pipe) -> None:
    assert all(one.zero_point.abs().max() < 0.02 for one in outputs(corrected(pipe, 8)))


def test_the_observed_range_can_be_kept(pipe) -> None:
    q = corrected(pipe, range="max")
    assert all(float(one.scale) < 0.5 / 15 for one in outputs(q))


def test_tables_come_back_from_disk(pipe, tmp_path) -> None:
    for granularity in ("head_timestep", "row"):
        q = corrected(pipe, granularity=granularity)
        q.save_pretrained(tmp_path / granularity)
        again = dqlab.load(tmp_path / granularity)
        assert torch.equal(images(again), images(q))


def test_it_adds_to_what_another_method_placed(pipe) -> None:
    """TDQ keeps its grids; a correction behind both is fitted to what both made."""
    quick = recipe("tdq", warm=3, updates=3)
    made = quick | "softmax-bias-correction" | recipe("ptqd", samples=2)
    assert made.owners["place"].beneath is quick.owners["place"]
    assert made.to_dict()["moments"]["place"] == "tdq + softmax-bias-correction"
    q = dqlab.quantize(pipe, made, 8, 8, sampler=sampler(), softmax=4)
    kinds = {type(one.format).__name__ for one in quantizers(q.unet).values()}
    assert kinds == {"Affine", "CorrectedSoftmax", "Grid"}
    assert type(q).__name__ == "CorrectedDDIMPipeline"


def test_no_network_calls_are_added(pipe) -> None:
    q = corrected(pipe)
    calls = count_calls(q.unet)
    images(q)
    assert len(calls) == STEPS


def test_models_without_a_softmax_in_bits_are_refused(pipe) -> None:
    plain = new_pipeline(
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type=None,
    )
    for chosen in (plain, pipe):
        bits = None if chosen is pipe else 8
        with pytest.raises(NotApplicableError, match="found no softmax output"):
            dqlab.quantize(chosen, "softmax-bias-correction", 8, bits, sampler=sampler())


def test_too_few_bits_are_noticed(pipe) -> None:
    with pytest.warns(UserWarning, match="of its mass to rounding"):
        corrected(pipe, 2)


def seen(P, steps: int = 1) -> sbc.LostMass:
    quantizer = Quantizer("there.p", StepContext())
    quantizer.format = Affine(4, "always_zero")
    quantizer.set_range(Range(torch.tensor(1 / 15), torch.tensor(0.0)))
    made = sbc.LostMass(quantizer, steps)
    made.update(P)
    return made


def test_rows_that_see_nothing_do_not_count() -> None:
    P = torch.zeros(1, 2, 3, 4)
    P[:, :, 0, 0] = 1.0
    P[:, 1, 1] = 0.25  # 3.75 of 15 levels round to 4: 16 / 15
    assert seen(P).delta()[0].tolist() == pytest.approx([0.0, -1 / 30])


@pytest.mark.parametrize("value", [float("nan"), 0.4, -1.0])
def test_what_is_no_softmax_output_is_refused(value) -> None:
    P = torch.full((1, 1, 2, 4), 0.25)
    P[0, 0, 0, 0] = value
    with pytest.raises(InvalidInputError, match=r"there\.p is no softmax output"):
        seen(P)


@pytest.mark.parametrize("options", [{"granularity": "pixel"}, {"range": "all"}])
def test_options_are_checked(options) -> None:
    with pytest.raises(InvalidInputError, match="head_timestep, row, and unit or max"):
        recipe("softmax-bias-correction", **options)


@pytest.mark.parametrize("runs", [1, 2, 3, 8])
def test_both_branches_are_looked_at_however_few_runs_there_are(runs: int) -> None:
    """Rows of a step lie branch by branch: one in four of all of them may miss a whole branch."""
    steps = torch.arange(8).repeat_interleave(2 * runs)
    branch = torch.arange(2).repeat_interleave(runs).repeat(8)
    rows = torch.zeros(len(steps))
    states = States(rows, rows, steps, rows.long(), rows, branch, branches=("uncond", "cond"))
    some = sbc.thinned(states)
    counts = [int((some.branch == i).sum()) for i in range(2)]
    assert counts == [8 * runs // sbc.STRIDE] * 2
    assert some.step.unique().numel() == min(8, 2 * runs)
