"""QVD as a whole, on tiny U-Nets and a tiny video model; its effects where they are planted."""

import math
from functools import cache

import pytest
import torch
from tiny_diffusion import STEPS, images, new_pipeline, sampler
from tiny_pipelines import animatediff, dit, tiny
from torch import nn

import dqlab
from dqlab import recipe
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.formats import Affine, Log2, LogTau
from dqlab.layers import quantizers
from dqlab.methods import run, scri
from dqlab.methods.channels import ChannelRange, channel_range, channel_ranges
from dqlab.methods.scri import output_error
from dqlab.methods.unet_time_information import qvd
from dqlab.methods.unet_time_information.qvd import best_grid, grid_score, time_grids
from dqlab.models.families import Sampler, family_of
from dqlab.trajectory import States, record

FORMATS = {"W8A4": (Affine(4), Affine(8)), "W4A6": (Affine(6), Affine(4))}


@cache
def states_of(pipe):
    return record(pipe, [0, 1], sampler())[0]


@cache
def original():
    return new_pipeline()


def quantized(pipe=None, weights=8, activations=6, **options):
    pipe = pipe or original()
    return dqlab.quantize(
        pipe, recipe("qvd", **options), weights, activations, sampler=sampler(),
        calibration=states_of(pipe),
    )  # fmt: skip


@cache
def whole():
    return quantized()


def test_moments() -> None:
    assert recipe("qvd").owners.keys() == {"reshape", "place"}


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("builder", [new_pipeline, lambda: tiny(animatediff)], ids=["u", "video"])
def test_the_rewrite_keeps_the_function(alpha, builder, monkeypatch) -> None:
    pipe, seen = builder(), []
    monkeypatch.setattr(run, "_place", lambda job: seen.append(job) or _none(job))
    quantized(pipe, alpha=alpha)
    states = states_of(pipe)[:2]
    with torch.no_grad():
        y = states.call(family_of(pipe).denoiser(pipe))
        difference = states.call(seen[0].denoiser) - y
    assert difference.abs().max() < 1e-4 * y.abs().max()
    assert seen[0].denoiser.conv_in.channel_shift.any()


def _none(job) -> None:
    for quantizer in quantizers(job.denoiser).values():
        quantizer.format = None


def test_every_layer_but_the_time_projections_is_rewritten_or_left_by_choice() -> None:
    info = dqlab.describe(whole())
    alphas = info["choices"]["reshape"]
    projections = {p for p in info["layers"] if p.endswith("time_emb_proj")}
    assert set(alphas) == set(info["layers"]) - projections and projections
    assert info["shifted"] == info["smoothed"]
    assert set(info["shifted"]) == {p for p, alpha in alphas.items() if alpha is not None}
    assert None in alphas.values() and info["shifted"]


def scattered(out: int = 16, channels: int = 12, seed: int = 0):
    """A layer and inputs whose channels differ 32-fold in range and lie off centre."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Conv2d(channels, out, 3, padding=1)
    x = torch.rand(8, channels, 10, 10, generator=generator)
    spread = torch.exp2(-torch.linspace(0, 5, channels))
    x = (x - 0.2) * spread[:, None, None]
    with torch.no_grad():  # what small channels carry must count
        layer.weight /= spread[:, None, None]
    seen = ChannelRange("layer")
    seen.low, seen.high = channel_range(layer, x)
    return layer, x, seen


def test_scattered_channels_gain_what_coverage_promises() -> None:
    """All channels weigh alike; on one range of 4 bits channel c lacks log2(1 / kappa_c) bits."""
    layer, x, seen = scattered()
    error = {a: output_error(layer, x, seen, FORMATS["W8A4"], a) for a in (None, 0.0, 1.0)}
    kappa = torch.exp2(-torch.linspace(0, 5, 12))
    expected = 10 * math.log10(float((kappa**-2).mean()))  # 17.9 dB, were nothing in the way
    gain = 10 * math.log10(error[None] / error[1.0])
    assert 0.5 * expected < gain < 1.2 * expected


@pytest.mark.parametrize("formats", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("seed", range(3))
def test_the_chosen_alpha_is_never_worse_than_none(formats, seed) -> None:
    torch.manual_seed(seed)
    layer, x, seen = nn.Linear(8, 8), torch.randn(64, 8), ChannelRange("layer")
    seen.low, seen.high = channel_range(layer, x)
    errors = [output_error(layer, x, seen, formats, a) for a in scri.ALPHAS]
    assert scri.ALPHAS[0] is None and min(errors) <= errors[0]


def test_range_moved_into_4_bit_weights_can_hurt() -> None:
    """Channels that all count alike need no evening out: with it, weights lie 32-fold apart."""
    layer, x, seen = scattered()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape))
    few = (None, Affine(3))  # activations as they are: all that is left is what weights lose
    assert output_error(layer, x, seen, few, 1.0) != output_error(layer, x, seen, few, None)
    assert output_error(layer, x, seen, (None, None), 1.0) < 1e-8


class Reader(nn.Module):
    """A denoiser of one layer."""

    def __init__(self, channels: int = 32):
        super().__init__()
        self.layer = nn.Linear(channels, 16)

    def forward(self, sample, timestep):
        return self.layer(sample)


def told(trajectories: range, rows: int = 16, channels: int = 32) -> States:
    """One wide channel that moves on all the way; the others say what this trajectory is about."""
    x = []
    for seed in trajectories:
        generator = torch.Generator().manual_seed(seed)
        words = torch.randn(channels, generator=generator)
        x.append(words + 0.01 * torch.randn(rows, channels, generator=generator))
        x[-1][:, 0] = 4 * torch.linspace(-1, 1, rows)
    x, step = torch.cat(x), torch.arange(rows).repeat(len(trajectories))
    seeds = torch.tensor(trajectories).repeat_interleave(rows)
    return States(x, step.double(), step, seeds, x)


def test_alpha_is_judged_on_trajectories_that_ranges_have_not_seen() -> None:
    """Channels that a trajectory sets once are clipped in the next, if they fill the range."""
    torch.manual_seed(0)
    net, states, formats = Reader(), told(range(8)), (Affine(8), Affine(8))
    searched = {}
    for name, sets in (("halves", scri.halves(states)), ("its own", [states])):
        ranges = [channel_ranges(net, ["layer"], one) for one in sets]
        searched[name] = scri.best_alphas(net, ["layer"], sets, ranges, lambda path: formats)
    seen, x = channel_ranges(net, ["layer"], states)["layer"], told(range(100, 116)).x
    error = {a: output_error(net.layer, x, seen, formats, a, states.x) for a in scri.ALPHAS}
    assert error[searched["its own"]["layer"]] > 4 * error[None]
    assert error[searched["halves"]["layer"]] <= 1.5 * error[None]


def test_one_trajectory_is_judged_on_itself() -> None:
    assert scri.halves(states_of(original())[:1])[0].seed.tolist() == [0]
    first, second = scri.halves(told(range(5), rows=2))
    assert first.seed.unique().tolist() == [0, 2, 4] and second.seed.unique().tolist() == [1, 3]


def skewed() -> torch.Tensor:
    return torch.exp2(-torch.arange(12.0)[None] + torch.arange(16.0)[:, None] / 8)


def best(u, bits):
    return best_grid(u, time_grids(bits))[0]


@pytest.mark.parametrize("bits", [4, 6])
def test_skewed_features_get_a_log_grid_and_even_ones_do_not(bits) -> None:
    assert isinstance(best(skewed(), bits), Log2 | LogTau)
    even = torch.stack([torch.sin(torch.arange(16.0) / 3 + c) for c in range(12)], 1)
    assert isinstance(best(even, 8), Affine)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_uniform_is_always_a_candidate(bits) -> None:
    grids = time_grids(bits)
    assert grids[0] == Affine(bits) and len(grids) == (2 if bits == 2 else 8)
    scores = {grid.name: grid_score(skewed(), grid)[0] for grid in grids}
    chosen, told = best_grid(skewed(), grids)
    assert told == scores and scores[chosen.name] == max(scores.values())


def test_the_best_grid_stands_at_every_projection() -> None:
    info = dqlab.describe(whole())
    grid = info["choices"]["time grid"]
    scores = {k: v for k, v in grid.items() if k != "chosen"}
    assert scores[grid["chosen"]] == max(scores.values())
    sites = quantizers(whole().unet)
    timed = [s for s in sites if s.endswith("time_emb_proj.input")]
    assert {sites[s].format.name for s in timed} == {grid["chosen"]}
    assert len({float(sites[s].scale) for s in timed}) == 1  # all read the same tensor
    assert sites["time_embedding.linear_1.input"].format == Affine(6)


@pytest.mark.parametrize(
    ("temporal", "kind"), [("uniform", Affine), ("per-step", Affine), ("log2", Log2)]
)
def test_a_grid_can_be_asked_for(temporal, kind) -> None:
    chosen = recipe("qvd", temporal=temporal).only("place")
    with pytest.warns(UserWarning, match="hardly skewed") if kind is Log2 else no_warning():
        q = dqlab.quantize(
            original(), chosen, 8, 6, sampler=sampler(), calibration=states_of(original())
        )
    sites = quantizers(q.unet)
    for site in (s for s in sites if s.endswith("time_emb_proj.input")):
        assert isinstance(sites[site].format, kind)
        assert sites[site].per_step is (temporal == "per-step")
    assert dqlab.describe(q)["smoothed"] == []


def no_warning():
    from contextlib import nullcontext

    return nullcontext()


def test_two_bits_have_no_logtau() -> None:
    with pytest.raises(InvalidInputError, match="no grid of 2 bits"):
        quantized(activations=2, temporal="logtau", alpha=1.0)


def test_it_comes_back_from_disk(tmp_path) -> None:
    whole().save_pretrained(tmp_path)
    again = dqlab.load(tmp_path)
    assert torch.equal(images(again), images(whole()))
    assert dqlab.describe(again)["shifted"] == dqlab.describe(whole())["shifted"]


@cache
def framed():
    """Min-max in place of a search, which takes most of the time of so many ranges."""
    chosen = recipe("qvd", frame_wise=True).only("place")
    pipe = tiny(animatediff)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qvd, "RULE", "min_max")
        return dqlab.quantize(pipe, chosen, 8, 8, sampler=sampler(), calibration=states_of(pipe))


def test_frames_have_ranges_where_they_are_rows(tmp_path) -> None:
    q = framed()
    sites, info = quantizers(q.unet), dqlab.describe(q)
    frames = info["per_frame"]
    assert set(frames.values()) == {4}
    assert "conv_in.input" in frames and not any("motion_modules" in s for s in frames)
    assert all(len(sites[s].scale) == 4 for s in frames)
    assert not any(s.endswith("time_emb_proj.input") for s in frames)
    family, setting = family_of(q), Sampler(STEPS)
    video = family.run(q, setting, [7])
    q.save_pretrained(tmp_path)
    assert torch.equal(family.run(dqlab.load(tmp_path), setting, [7]), video)


def test_a_frames_range_is_that_of_the_frame() -> None:
    states, q = states_of(tiny(animatediff)), framed()
    scale = quantizers(q.unet)["conv_in.input"].scale
    by_frame = states.x.movedim(2, 0).flatten(1)
    widest = (by_frame.amax(1).clamp(min=0) - by_frame.amin(1).clamp(max=0)) / 255
    torch.testing.assert_close(scale, widest)
    assert not torch.allclose(scale, scale[0])


def test_another_number_of_frames_is_refused() -> None:
    from dqlab.models.families import ask

    q = ask(framed(), num_frames=2)
    with pytest.raises(InvalidInputError, match="each of 4 frames"):
        family_of(q).run(q, Sampler(STEPS), [7])


def test_pictures_have_no_frames() -> None:
    with pytest.raises(NotApplicableError, match=r"samples \[N, C, frames, H, W\]"):
        quantized(frame_wise=True)


def test_transformers_are_refused() -> None:
    with pytest.raises(NotApplicableError, match="through the modulation of its norms"):
        dqlab.quantize(tiny(dit), "qvd", 8, 8)


def test_tied_weights_are_refused() -> None:
    pipe = new_pipeline()
    first, second = pipe.unet.down_blocks[0].resnets[0], pipe.unet.up_blocks[1].resnets[1]
    second.conv2.weight = first.conv2.weight
    with pytest.raises(InvalidInputError, match="share one weight"):
        quantized(pipe)


def test_layers_it_is_not_defined_for_stay_as_they_are() -> None:
    pipe = new_pipeline()
    pipe.unet.down_blocks[0].resnets[0].conv1.padding_mode = "circular"
    q = quantized(pipe, alpha=1.0)
    assert "down_blocks.0.resnets.0.conv1" not in dqlab.describe(q)["shifted"]


@pytest.mark.parametrize("option", [{"temporal": "log10"}, {"alpha": 2.0}])
def test_options_are_checked(option) -> None:
    with pytest.raises(InvalidInputError, match="choose"):
        recipe("qvd", **option)
