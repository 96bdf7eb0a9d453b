import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import SAMPLER, new_pipeline, pipeline, quantized, recorded

import dqlab
from dqlab.errors import CheckpointError, InvalidInputError
from dqlab.formats import Range
from dqlab.layers import quantizers
from dqlab.methods import Method, Paper, Recipe
from dqlab.methods.recipe import title

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CONFIG = "unet/config.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "q"
    quantized(4, 8).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "q")


def images(pipe):
    return pipe(
        2, torch.Generator().manual_seed(1), num_inference_steps=3, output_type="np"
    ).images


def test_loaded_pipeline_is_the_saved_one(saved) -> None:
    q, again = quantized(4, 8), dqlab.load(saved)
    assert type(again) is type(q)
    assert (images(again) == images(q)).all()
    assert dqlab.describe(again) == dqlab.describe(q)
    assert again.unet.state_dict().keys() == q.unet.state_dict().keys()
    assert all(torch.equal(v, again.unet.state_dict()[k]) for k, v in q.unet.state_dict().items())
    assert again.unet.step_context.schedule.tolist() == [999.0, 666.0, 332.0]
    assert not again.unet.training


def test_saved_twice_is_the_same(saved, tmp_path) -> None:
    dqlab.load(saved).save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (saved / WEIGHTS).read_bytes()
    assert (images(dqlab.load(tmp_path / "again")) == images(quantized(4, 8))).all()


def test_weights_are_stored_as_codes(saved) -> None:
    stored = load_file(saved / WEIGHTS)
    for path in dqlab.describe(quantized(4, 8))["layers"]:
        assert f"{path}.weight" not in stored
        assert stored[f"{path}.weight_codes"].dtype in (torch.uint8, torch.int8)
    assert int(stored["mid_block.attentions.0.to_q.weight_codes"].max()) <= 15


@pytest.mark.parametrize(("weights", "activations"), [("fp4", "fp8"), (8, None), ("log2-4", 4)])
def test_every_format_comes_back(tmp_path, weights, activations) -> None:
    q = quantized(weights, activations)
    q.save_pretrained(tmp_path / "q")
    assert (images(dqlab.load(tmp_path / "q")) == images(q)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back(tmp_path, dtype) -> None:
    pipe = new_pipeline()
    pipe.unet.to(dtype)
    states = recorded()[0]
    states = replace(states, x=states.x.to(dtype))
    q = dqlab.quantize(pipe, "rtn", 4, 8, sampler=SAMPLER, calibration=states)
    q.save_pretrained(tmp_path / "q")
    again = dqlab.load(tmp_path / "q")
    assert again.unet.dtype is dtype
    assert torch.equal(states.call(again.unet), states.call(q.unet))


class Stepwise(Method):
    """Gives every activation twice the usual range at the second step."""

    slug = "stepwise"
    paper = Paper("Stepwise", "here", "0000.00000")
    category = "test"

    def ranges(self, job, sites):
        super().ranges(job, sites)
        found = quantizers(job.denoiser)
        for site in sites:
            if not site.endswith(".weight"):
                s, z = found[site].scale, found[site].zero_point
                found[site].set_range(Range(torch.stack([s, 2 * s, s]), z.expand(3)), True)


def test_ranges_per_step_come_back(tmp_path) -> None:
    method = Stepwise()
    recipe = Recipe((method,), {"place": method})
    q = dqlab.quantize(pipeline(), recipe, 8, 4, sampler=SAMPLER, calibration=recorded()[0])
    q.save_pretrained(tmp_path / "q")
    again = dqlab.load(tmp_path / "q")
    assert (images(again) == images(q)).all()
    assert (images(again) != images(quantized(8, 4))).any()


@pytest.fixture(scope="module")
def saved_in_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards") / "q"
    quantized(4, 8).save_pretrained(folder, max_shard_size="10KB")
    return folder


def shards(folder):
    return sorted((folder / "unet").glob("diffusion_pytorch_model-*.safetensors"))


def test_shards_come_back(saved_in_shards) -> None:
    assert len(shards(saved_in_shards)) > 1
    again = dqlab.load(saved_in_shards)
    assert (images(again) == images(quantized(4, 8))).all()


@pytest.mark.parametrize("damage", ["missing", "truncated", "swapped", "index", "outside"])
def test_damaged_shards_are_refused(saved_in_shards, tmp_path, damage) -> None:
    folder = shutil.copytree(saved_in_shards, tmp_path / "q")
    first, second, *_ = shards(folder)
    index = folder / f"{WEIGHTS}.index.json"
    if damage == "missing":
        first.unlink()
    elif damage == "truncated":
        first.write_bytes(first.read_bytes()[:-8])
    elif damage == "swapped":
        first.write_bytes(second.read_bytes())
    elif damage == "index":
        index.write_text("{}")
    else:
        outside = tmp_path / first.name
        first.rename(outside)
        index.write_text(index.read_text().replace(first.name, f"../../{first.name}"))
    with pytest.raises(CheckpointError, match=r"(?s)q/unet .*Save it again"):
        dqlab.load(folder)


def test_plain_diffusers_refuses_shards_too(saved_in_shards) -> None:
    from diffusers import DiffusionPipeline

    with pytest.raises(ValueError, match="got dqlab"):
        DiffusionPipeline.from_pretrained(saved_in_shards)


def test_options_come_back(tmp_path) -> None:
    """Two recipes that differ in an option alone are told apart after a reload."""
    options = {"split": False, "reconstruct": False}
    chosen = dqlab.recipe("q-diffusion", **options)
    q = dqlab.quantize(pipeline(), chosen, 8, 8, sampler=SAMPLER, calibration=recorded()[0])
    q.save_pretrained(tmp_path / "q")
    found = dqlab.describe(dqlab.load(tmp_path / "q"))["recipe"]
    assert found == chosen.to_dict()
    assert found["options"] == [options]
    assert title(found) == "q-diffusion(reconstruct=False, split=False)"


def test_a_folder_saved_half_way_is_refused(saved, tmp_path) -> None:
    """Whatever file a kill came before."""
    files = [p.relative_to(saved) for p in saved.rglob("*") if p.is_file()]
    for missing in files:
        folder = shutil.copytree(saved, tmp_path / missing.name)
        (folder / missing).unlink()
        with pytest.raises(CheckpointError, match=r"model_index\.json|Save it again|could not be"):
            dqlab.load(folder)


def own():
    """A quantized pipeline that a test may change."""
    return dqlab.quantize(pipeline(), "rtn", 4, 8, sampler=SAMPLER, calibration=recorded()[0])


def test_a_network_edited_after_quantization_can_be_saved(tmp_path) -> None:
    q = own()
    with torch.no_grad():
        q.unet.conv_in.bias.add_(1)
    q.save_pretrained(tmp_path / "q")
    again = dqlab.load(tmp_path / "q")
    assert type(again.unet) is type(q.unet)
    assert type(again.unet).__name__ == "UNet2DModel"
    assert all(torch.equal(v, again.unet.state_dict()[k]) for k, v in q.unet.state_dict().items())
    assert dqlab.describe(again)["fingerprint"] != dqlab.describe(quantized(4, 8))["fingerprint"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_cast_after_quantization_is_not_saved(tmp_path, dtype) -> None:
    q = own()
    q.unet.to(dtype)
    with pytest.raises(InvalidInputError, match=r"cast from float32 to \w+16 after .*quantize"):
        q.unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(InvalidInputError, match="cast from float32"):
        q.save_pretrained(tmp_path / "q")


def test_plain_diffusers_refuses_the_folder(saved) -> None:
    from diffusers import DDIMPipeline, UNet2DModel

    with pytest.raises(ValueError, match="got dqlab"):
        DDIMPipeline.from_pretrained(saved)
    with pytest.raises(ValueError, match="got dqlab"):
        UNet2DModel.from_pretrained(saved / "unet")


def edit_config(folder, change) -> None:
    path = folder / CONFIG
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def edit_tensors(folder, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


CODES = "mid_block.attentions.0.to_q.weight_codes"
SCALE = "mid_block.attentions.0.to_q.input_quantizer.scale"


def flip_a_code(tensors) -> None:
    tensors[CODES][0, 0] ^= 1


TENSOR_DAMAGE = {
    "a code flipped": flip_a_code,
    "a scale changed": lambda t: t[SCALE].mul_(1.001),
    "codes missing": lambda t: t.pop(CODES),
    "scale missing": lambda t: t.pop(SCALE),
    "bias missing": lambda t: t.pop("conv_in.bias"),
    "stray tensor": lambda t: t.update(stray=torch.zeros(1)),
    "wrong shape": lambda t: t.update({CODES: t[CODES][:3].clone()}),
}


@pytest.mark.parametrize("damage", TENSOR_DAMAGE)
def test_changed_tensors_are_noticed(folder, damage) -> None:
    edit_tensors(folder, TENSOR_DAMAGE[damage])
    with pytest.raises(CheckpointError, match=r"(?s)q/unet .*Save it again"):
        dqlab.load(folder)


FOUR_BITS = {"kind": "affine", "bits": 4}
CONFIG_DAMAGE = {
    "another format": lambda c: c["formats"].update({"conv_in.input": FOUR_BITS}),
    "impossible format": lambda c: c["formats"].update({"conv_in.input": {"kind": "nf9"}}),
    "stray site": lambda c: c["formats"].update({"nowhere.input": FOUR_BITS}),
    "site dropped": lambda c: c["formats"].pop("conv_in.input"),
    "layer dropped": lambda c: c["layers"].pop(),
    "stray layer": lambda c: c["layers"].append("nowhere"),
    "no layer": lambda c: c["layers"].append("conv_norm_out"),
    "schedule changed": lambda c: c["schedule"].reverse(),
    "bits changed": lambda c: c.update(weights=8),
    "dtype changed": lambda c: c.update(dtype="load"),
    "key missing": lambda c: c.pop("formats"),
    "fingerprint missing": lambda c: c.pop("fingerprint"),
}


@pytest.mark.parametrize("damage", CONFIG_DAMAGE)
def test_changed_settings_are_noticed(folder, damage) -> None:
    edit_config(folder, CONFIG_DAMAGE[damage])
    with pytest.raises(CheckpointError, match=r"(?s)q/unet .*Save it again"):
        dqlab.load(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("norm_eps", 1e-3), ("flip_sin_to_cos", False), ("freq_shift", 1),
     ("mid_block_scale_factor", 2), ("downsample_padding", 0), ("sample_size", 16)],
)  # fmt: skip
def test_changed_settings_of_the_network_are_noticed(folder, name, value) -> None:
    """They need no other tensors, so nothing else would show them."""
    config = json.loads((folder / CONFIG).read_text())
    assert config[name] != value
    (folder / CONFIG).write_text(json.dumps(config | {name: value}))
    with pytest.raises(CheckpointError, match=r"(?s)q/unet .*Save it again"):
        dqlab.load(folder)


@pytest.mark.parametrize(
    "change",
    [lambda c: c.update(version=1), lambda c: c.update(quant_method="gguf"),
     lambda c: c.pop("version"), lambda c: c.clear()],
)  # fmt: skip
def test_another_version_is_refused(folder, change) -> None:
    edit_config(folder, change)
    with pytest.raises(CheckpointError, match="this dqlab reads 'dqlab' version 2"):
        dqlab.load(folder)


def test_record_that_is_no_object_is_refused(folder) -> None:
    config = json.loads((folder / CONFIG).read_text()) | {"quantization_config": [1]}
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="this dqlab reads"):
        dqlab.load(folder)


@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_truncated_weights_are_refused(folder, keep) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        dqlab.load(folder)


@pytest.mark.parametrize(
    "name",
    [WEIGHTS, "scheduler/scheduler_config.json", "model_index.json", CONFIG],
)
def test_missing_file_is_refused(folder, name) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError):
        dqlab.load(folder)


@pytest.mark.parametrize("name", ["model_index.json", CONFIG])
def test_broken_json_is_refused(folder, name) -> None:
    (folder / name).write_text('{"a": ')
    with pytest.raises(CheckpointError, match=name.rpartition("/")[2]):
        dqlab.load(folder)


@pytest.mark.parametrize(
    "name", ["unet/extra.bin", "x.pkl", "scheduler/a.PT", "custom.py", "unet/w.ckpt", "v.npz"]
)
def test_files_that_may_run_code_are_refused(folder, name) -> None:
    (folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(CheckpointError, match="may run code when it is read"):
        dqlab.load(folder)


def test_plain_folders_are_checked_too(tmp_path) -> None:
    pipeline().save_pretrained(tmp_path / "plain")
    assert dqlab.describe(dqlab.load(tmp_path / "plain")) == {}
    (tmp_path / "plain" / "unet" / "old.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"old\.bin may run code"):
        dqlab.load(tmp_path / "plain")


def test_pipeline_of_its_own_code_is_refused(folder) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = ["pipeline", "MyPipeline"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="class of its own code"):
        dqlab.load(folder)
