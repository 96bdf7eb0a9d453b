"""TFMQ-DM as a whole, on tiny U-Nets, and the time path it finds."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from tiny_diffusion import STEPS, guided_pipeline, images, new_pipeline, sampler, schedule
from tiny_pipelines import animatediff, dit, stable_diffusion, tiny

import dqlab
from dqlab import recipe
from dqlab.errors import InvalidInputError, NotApplicableError
from dqlab.fit.profiles import ROUNDING
from dqlab.layers import quantizers
from dqlab.methods.reconstruction import Reconstruct
from dqlab.methods.time_path import time_path_of
from dqlab.methods.unet_time_information import tfmq_dm
from dqlab.methods.unet_time_information.tfmq_dm import KeepFeatures, ReconstructTime
from dqlab.models.families import Sampler, family_of
from dqlab.reference import tfmq_dm as paper
from dqlab.trajectory import record

SAMPLER = Sampler(STEPS)


@pytest.fixture(autouse=True, scope="module")
def short():
    """Enough for layers of 8 to 32 channels."""
    with pytest.MonkeyPatch.context() as patch:
        quick = replace(tfmq_dm.TIAR["teach"], iterations=200, rounding_lr=0.05)
        patch.setitem(tfmq_dm.TIAR, "teach", quick)
        few = replace(ROUNDING["teach"], iterations=2, batch=4)
        patch.setitem(ROUNDING, "teach", few)
        yield


@cache
def states_of(pipe):
    return record(pipe, [0, 1], sampler())[0]


@cache
def original():
    return new_pipeline(resnet_time_scale_shift="scale_shift")


@cache
def quantized(weights=4, activations=8, **options):
    chosen = recipe("tfmq-dm", **{"reconstruct": False} | options)
    calibration = states_of(original())
    return dqlab.quantize(
        original(), chosen, weights, activations, sampler=sampler(), calibration=calibration
    )


def path():
    return time_path_of(original(), states_of(original()), SAMPLER)


def features(net, found=None):
    found = found or path()
    if hasattr(net, "step_context"):
        net.step_context.at(schedule(original()).double()[found.step])
    with torch.no_grad():
        return found.features(net)


def weights(q, layers) -> list[torch.Tensor]:
    return [q.unet.get_submodule(layer).weight for layer in layers]


@pytest.mark.parametrize("builder", [stable_diffusion, animatediff], ids=lambda b: b.__name__)
def test_the_path_gives_what_blocks_are_told(builder) -> None:
    """Equal to hooks inside the whole network; frames and branches are told the same."""
    pipe = tiny(builder)
    states = states_of(pipe)
    found = time_path_of(pipe, states, SAMPLER)
    assert found.time_alone and len(found.blocks) == 8
    net, seen = family_of(pipe).denoiser(pipe), {}
    handles = [
        net.get_submodule(p).register_forward_hook(lambda m, a, y, p=p: seen.update({p: y}))
        for p in found.projections
    ]
    at = states[states.step == 1]
    with torch.no_grad():
        at.call(net)
    for handle in handles:
        handle.remove()
    for name, E in zip(found.projections, features(net, found), strict=True):
        assert (seen[name] - E[1]).abs().max() < 1e-6


def test_the_path_is_the_papers_formula() -> None:
    found, net = path(), original().unet
    names = [(net.get_submodule(p).weight, net.get_submodule(p).bias) for p in found.layers]
    formula = paper.temporal_features(found.time, *names[:2], names[2:])
    for E, other in zip(features(net), formula, strict=True):
        torch.testing.assert_close(E, other)


def test_labels_make_a_row_of_their_own_at_every_step(monkeypatch) -> None:
    pipe = guided_pipeline(monkeypatch)
    found = time_path_of(pipe, states_of(pipe), SAMPLER)
    assert not found.time_alone
    assert found.step.bincount().tolist() == [2] * STEPS
    chosen = recipe("tfmq-dm", reconstruct=False, maintenance="cache")
    with pytest.raises(NotApplicableError, match="6 of them over 3 steps"):
        dqlab.quantize(pipe, chosen, 4, 8, sampler=sampler(), calibration=states_of(pipe))
    q = dqlab.quantize(
        pipe, recipe("tfmq-dm", reconstruct=False), 4, 4, sampler=sampler(),
        calibration=states_of(pipe),
    )  # fmt: skip
    assert dqlab.describe(q)["choices"]["tiar loss"]["learned"] > 0


def test_tiar_halves_the_loss_of_rounding_to_nearest() -> None:
    loss = dqlab.describe(quantized())["choices"]["tiar loss"]
    assert loss["learned"] <= 0.5 * loss["nearest"]
    full, learned = features(original().unet), features(quantized(activations=None).unet)
    nearest = features(quantized(activations=None, temporal="nearest").unet)
    assert float(paper.tiar_loss(full, learned)) == pytest.approx(loss["learned"], rel=1e-4)
    assert float(paper.tiar_loss(full, nearest)) == pytest.approx(loss["nearest"], rel=1e-4)
    closer = [
        paper.cosine(E, a).mean() > paper.cosine(E, b).mean()
        for E, a, b in zip(full, learned, nearest, strict=True)
    ]
    assert sum(closer) >= 0.9 * len(closer)


def test_every_weight_of_the_path_is_rounded_up_or_down() -> None:
    net, plain = quantized().unet, original().unet
    for name in path().layers:
        layer, W = net.get_submodule(name), plain.get_submodule(name).weight
        r = layer.weight_quantizer.range
        off = layer.weight / r.scale - (W / r.scale).clamp(-r.zero_point, 15 - r.zero_point)
        assert off.abs().max() < 1 + 1e-4


def test_blocks_leave_the_time_projections_alone() -> None:
    """Bit for bit; without the exclusion they are part of their blocks."""
    layers = path().layers
    alone, beside = quantized(), quantized(reconstruct=True)
    assert all(map(torch.equal, weights(alone, layers), weights(beside, layers)))
    conv = ["down_blocks.0.resnets.0.conv1"]
    assert not torch.equal(*weights(alone, conv), *weights(beside, conv))


@pytest.mark.parametrize("bits", [4, 8])
def test_on_the_path_nothing_is_clipped_at_any_step(bits) -> None:
    q = quantized(activations=bits)
    found, sites, seen = path(), quantizers(q.unet), {}
    names = [f"{layer}.input" for layer in found.layers]
    for name in names:
        sites[name].taps.append(lambda x, name=name: seen.update({name: x}))
    # The first layer meets exactly what its ranges are made from, those behind it almost.
    features(q.unet)
    for name in names:
        sites[name].taps.clear()
        scale, x = sites[name].scale[:, None], seen[name]
        assert sites[name].per_step and len(sites[name].scale) == STEPS
        if name == names[0]:
            step = sites[name].format.fake_quant(x, sites[name].range.index(found.step, 2)) - x
            assert (step.abs() <= scale * (0.5 + 1e-4)).all()


def test_ranges_by_step_are_finer_where_features_shrink() -> None:
    """u shrinks eightfold over the steps: 3 bits less noise at the last one, none at the first."""
    pipe = new_pipeline()
    with torch.no_grad():
        second = pipe.unet.time_embedding.linear_2
        second.weight.mul_(8)
    errors = {}
    for scope in ("tib", "none"):
        chosen = recipe("tfmq-dm", scope=scope, temporal="nearest", reconstruct=False)
        q = dqlab.quantize(pipe, chosen, None, 4, sampler=sampler(), calibration=states_of(pipe))
        found = time_path_of(pipe, states_of(pipe), SAMPLER)
        q.unet.step_context.at(schedule(pipe).double()[found.step])
        full, rounded = (found.features(n) for n in (pipe.unet, q.unet))
        errors[scope] = sum(
            paper.relative_error(a, b).sum() for a, b in zip(full, rounded, strict=True)
        )
    assert errors["tib"] < errors["none"]


@pytest.mark.parametrize("scope", ["tib", "all", "none"])
def test_the_scope_says_what_has_a_range_per_step(scope) -> None:
    q = quantized(scope=scope)
    timed = {f"{layer}.input" for layer in path().layers}
    active = {s for s in quantizers(q.unet) if not s.endswith(".weight")}
    expected = {"tib": timed, "all": active, "none": set()}[scope]
    assert set(dqlab.describe(q)["per_step"]) == expected
    if scope != "none":
        with pytest.raises(InvalidInputError, match="not among the 3 steps"):
            images(q, steps=4)


def test_kept_features_are_those_of_the_original_in_8_bits() -> None:
    q = quantized(maintenance="cache")
    for E, kept in zip(features(original().unet), features(q.unet), strict=True):
        half = (E.amax(1, keepdim=True).clamp(min=0) - E.amin(1, keepdim=True).clamp(max=0)) / 255
        assert ((kept - E).abs() <= half * (1 + 1e-3)).all()
    assert dqlab.describe(q)["choices"]["kept features"] == 1
    assert len(dqlab.describe(q)["tables"]) == len(path().blocks)


def test_with_features_kept_the_rest_of_the_path_no_longer_matters() -> None:
    """At 2 bits as at 8."""
    made = [quantized(8, 8, maintenance="cache"), quantized(2, 8, maintenance="cache")]
    assert all(map(torch.equal, *(features(q.unet) for q in made)))


def test_selection_is_never_worse_than_either() -> None:
    full = features(original().unet)
    errors = [
        [paper.relative_error(E, e) for E, e in zip(full, features(q.unet), strict=True)]
        for q in (quantized(maintenance=m) for m in ("ranges", "cache", "select"))
    ]
    for ranges, cached, selected in zip(*errors, strict=True):
        torch.testing.assert_close(selected, torch.minimum(ranges, cached))


@pytest.mark.parametrize("options", [{"scope": "all"}, {"maintenance": "select"}], ids=str)
def test_it_comes_back_from_disk(tmp_path, options) -> None:
    q = quantized(**options)
    q.save_pretrained(tmp_path)
    again = dqlab.load(tmp_path)
    assert torch.equal(images(again), images(q))


def phases_of(chosen):
    """What a recipe's fit would do, on the tiny U-Net."""
    kept = []

    class Stop(Exception):
        pass

    def peek(job):
        kept.extend(found(job))
        raise Stop

    owner = chosen.owners["fit"]
    found, owner.fit = owner.fit, peek
    with pytest.raises(Stop):
        dqlab.quantize(
            original(), chosen, 4, 8, sampler=sampler(), calibration=states_of(original())
        )
    return kept


def test_on_top_of_another_reconstruction_only_the_path_changes() -> None:
    base = recipe("q-diffusion").without("place", "calibrate")
    chosen = base | recipe("tfmq-dm", maintenance="select")
    phases = phases_of(chosen)
    kinds = [type(p) for p in phases]
    assert kinds.index(ReconstructTime) == 1 and kinds[-1] is KeepFeatures
    both = [p for p in phases if isinstance(p, Reconstruct)]
    assert [p.name for p in both] == ["rounding", "step sizes"]
    assert all(p.leave == set(path().layers) for p in both)


def test_left_to_the_blocks_nothing_is_excluded() -> None:
    phases = phases_of(recipe("tfmq-dm", temporal="blocks"))
    assert [p.name for p in phases] == ["weight ranges", "rounding", "activation ranges"]
    assert not phases[1].leave


def test_what_has_no_such_path_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="through the modulation of its norms"):
        dqlab.quantize(tiny(dit), "tfmq-dm", 8, 8)
    pipe = new_pipeline()
    for block in pipe.unet.modules():
        if hasattr(block, "time_emb_proj"):
            block.time_emb_proj = None
    with pytest.raises(NotApplicableError, match="No x-independent temporal block found"):
        time_path_of(pipe, states_of(new_pipeline()), SAMPLER)


def test_a_path_that_sees_the_picture_is_refused() -> None:
    pipe = new_pipeline()
    states, kept = states_of(pipe), {}
    pipe.unet.conv_in.register_forward_hook(lambda m, x, y: kept.update(mean=y.mean((1, 2, 3))))
    first = pipe.unet.down_blocks[0].resnets[0]
    plain = first.forward
    first.forward = lambda x, temb: plain(x, temb)
    pipe.unet.down_blocks[0].register_forward_pre_hook(
        lambda m, args, named: (args, named | {"temb": named["temb"] + kept["mean"][:, None]}),
        with_kwargs=True,
    )
    with pytest.raises(NotApplicableError, match="sees the picture"):
        time_path_of(pipe, states, SAMPLER)


@pytest.mark.parametrize("option", [{"scope": "net"}, {"maintenance": "x"}, {"temporal": "y"}])
def test_options_are_checked(option) -> None:
    with pytest.raises(InvalidInputError, match="choose one of"):
        recipe("tfmq-dm", **option)
