import json

import pytest
import tiny_pipelines
import torch
from tiny_models import SAMPLER, fill_shipped, new_unet, pipeline, quantized, seeded

import dqlab
from dqlab.errors import (
    CheckpointError,
    InvalidInputError,
    NotApplicableError,
    UnknownNameError,
)
from dqlab.models import loading
from dqlab.models.classifier import HEADS, AttributeClassifier, load_classifier, save_classifier
from dqlab.models.families import DDPM_UNET, PIXEL_UNET, Sampler, family_of
from dqlab.trajectory import record


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    fill_shipped(tmp_path)
    monkeypatch.setenv("DQLAB_SHIPPED_DIR", str(tmp_path))
    return tmp_path / "models"


def test_shipped_names(shipped) -> None:
    assert loading.shipped() == ["tiny-unet"]
    pipe = dqlab.load("tiny-unet")
    assert type(pipe).__name__ == "DDIMPipeline"
    for name, value in pipeline().unet.state_dict().items():
        assert torch.equal(pipe.unet.state_dict()[name], value)
    by_folder = dqlab.load(shipped / "tiny-unet")
    assert by_folder.unet.config.block_out_channels == [8, 16]


def test_table_of_models(shipped) -> None:
    size = (shipped / "tiny-unet" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    row = {"name": "tiny-unet", "pipeline": "DDIMPipeline", "megabytes": round(size / 1e6, 2)}
    assert dqlab.models_table() == [row | {"quality": {}}]
    (shipped / "tiny-unet" / "quality.json").write_text('{"confidence": 0.9}')
    assert dqlab.models_table() == [row | {"quality": {"confidence": 0.9}}]


@pytest.mark.parametrize("name", ["no-such-model", "./nowhere", "/nowhere/at/all", "~/x", "a/b/c"])
def test_unknown_names_list_what_there_is(shipped, name) -> None:
    with pytest.raises(UnknownNameError, match=rf"'{name}'.*Shipped: tiny-unet.*hub id"):
        dqlab.load(name)


def test_a_hub_id_goes_to_the_hub() -> None:
    assert loading.find_folder("google/ddpm-cifar10-32") is None


def test_a_hub_id_that_cannot_be_had_is_one_error() -> None:
    with pytest.raises(CheckpointError, match="nobody/nothing could not be opened"):
        dqlab.load("nobody/nothing")


def test_a_folder_without_an_index_is_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"without model_index\.json.*save_pretrained"):
        dqlab.load(tmp_path)


def test_sums_are_checked_where_they_are_recorded(shipped) -> None:
    folder = shipped / "tiny-unet"
    record_path = folder / "training.json"
    record_path.write_text(json.dumps({"sha256": loading.file_sums(folder)}))
    dqlab.load("tiny-unet")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(bytes(changed))
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors is not the"):
        dqlab.load("tiny-unet")
    weights.unlink()
    with pytest.raises(CheckpointError, match="truncated, changed or missing"):
        dqlab.load("tiny-unet")


@pytest.mark.parametrize("text", ["", "{", "[1]", "3"])
def test_json_that_is_no_object_is_refused(tmp_path, text) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"a\.json (is not readable JSON|holds)"):
        loading.read_json(path)


def test_classifier_round_trip(tmp_path) -> None:
    model = seeded(lambda: AttributeClassifier(8))
    save_classifier(model, tmp_path)
    again = load_classifier(tmp_path)
    images = torch.randn(3, 3, 32, 32)
    logits = again(images)
    assert {name: tuple(v.shape) for name, v in logits.items()} == {
        name: (3, n) for name, n in HEADS.items()
    }
    torch.testing.assert_close(logits["colour"], model(images)["colour"], rtol=0.02, atol=0.02)
    answers, confidence = again.read(images)
    assert torch.equal(answers.garment, logits["garment"].argmax(1))
    assert confidence.shape == (3,)
    assert 0 < confidence.min() <= confidence.max() <= 1
    assert not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", b"xx"), ("config.json", b"{"), ("config.json", b'{"depth": 3}'),
     ("config.json", b'{"width": 16}')],
)  # fmt: skip
def test_damaged_classifier_is_named(tmp_path, name, content) -> None:
    save_classifier(seeded(lambda: AttributeClassifier(8)), tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"(?s)damaged.*dqlab train attribute-classifier"):
        load_classifier(tmp_path)


def test_missing_classifier_says_how_to_get_it(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"No attribute classifier in.*dqlab train"):
        load_classifier(tmp_path)


def test_families() -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    ancestral = DDPMPipeline(new_unet(), DDPMScheduler())
    assert family_of(pipeline()) is PIXEL_UNET
    assert family_of(ancestral) is DDPM_UNET
    states, images = record(ancestral, [0, 1], SAMPLER)
    assert images.shape == (2, 3, 8, 8)
    assert states.t.unique_consecutive().tolist() == DDPM_UNET.schedule(
        ancestral, Sampler.of(SAMPLER)
    ).tolist()  # fmt: skip


def test_a_subclass_belongs_to_its_parents_family() -> None:
    from diffusers import DDIMPipeline

    class Mine(DDIMPipeline):
        pass

    assert family_of(Mine(pipeline().unet, pipeline().scheduler)) is PIXEL_UNET


@pytest.mark.parametrize("given", [None, "pixel-unet", 3, torch.nn.Linear(1, 1)])
def test_what_no_family_knows_is_refused(given) -> None:
    with pytest.raises(NotApplicableError, match=r"how to drive a .*it knows DDIMPipeline"):
        family_of(given)


def test_asking_for_the_schedule_changes_nothing() -> None:
    before = pipeline().scheduler.timesteps.tolist()
    PIXEL_UNET.schedule(pipeline(), Sampler(7))
    assert pipeline().scheduler.timesteps.tolist() == before


@pytest.fixture
def hub(tmp_path):
    """A hub cache that holds nobody/tiny, as a download would have left it."""
    repository = tmp_path / "models--nobody--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    pipeline().save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return tmp_path, snapshot


def test_a_model_from_the_hub_is_opened(hub) -> None:
    cache, _ = hub
    pipe = dqlab.load("nobody/tiny", cache_dir=cache)
    assert torch.equal(pipe.unet.conv_in.weight, pipeline().unet.conv_in.weight)
    half = dqlab.load("nobody/tiny", cache_dir=cache, dtype=torch.float16)
    assert half.unet.dtype is torch.float16


def test_a_quantized_model_from_the_hub_stays_quantized(hub) -> None:
    cache, snapshot = hub
    quantized().save_pretrained(snapshot)
    again = dqlab.load("nobody/tiny", cache_dir=cache)
    assert dqlab.describe(again) == dqlab.describe(quantized())


def test_a_model_from_the_hub_runs_no_code_of_its_own(hub) -> None:
    cache, snapshot = hub
    (snapshot / "unet" / "mine.py").write_text("raise SystemExit")
    with pytest.raises(CheckpointError, match=r"mine\.py is code that came with the model"):
        dqlab.load("nobody/tiny", cache_dir=cache)


def test_a_model_without_safetensors_says_how_to_convert_it(hub) -> None:
    cache, snapshot = hub
    weights = snapshot / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"safetensors only.*variant='fp16'.*convert"):
        dqlab.load("nobody/tiny", cache_dir=cache)


def test_a_pipeline_with_its_weights_at_the_top_opens(tmp_path) -> None:
    """The layout of google/ddpm-cifar10-32."""
    from diffusers import DDPMPipeline, DDPMScheduler

    DDPMPipeline(new_unet(), DDPMScheduler()).save_pretrained(tmp_path)
    for part in ("unet", "scheduler"):
        for path in (tmp_path / part).iterdir():
            path.rename(tmp_path / path.name)
        (tmp_path / part).rmdir()
    pipe = dqlab.load(tmp_path)
    assert family_of(pipe) is DDPM_UNET
    assert torch.equal(pipe.unet.conv_in.weight, new_unet().conv_in.weight)


def test_class_names_are_kept_when_a_pipeline_is_saved_again(tmp_path) -> None:
    pipe, names = tiny_pipelines.dit(), {"0": "sneaker", "1": "bag, purse"}
    pipe.register_to_config(id2label=names)
    pipe.save_pretrained(tmp_path / "once")
    dqlab.load(tmp_path / "once").save_pretrained(tmp_path / "twice")
    again = dqlab.load(tmp_path / "twice")
    assert again.get_label_ids(["purse"]) == [1]
    assert again.config.id2label == names


@pytest.mark.parametrize("option", ["trust_remote_code", "use_safetensors", "custom_pipeline"])
def test_options_that_could_run_code_are_refused(option) -> None:
    with pytest.raises(InvalidInputError, match=rf"{option}=True is no option of load"):
        dqlab.load("nobody/tiny", **{option: True})


def test_opening_says_nothing_and_leaves_the_loggers_as_they_were(capfd) -> None:
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    loggers = (of_diffusers, of_transformers)
    before = [(x.get_verbosity(), x.is_progress_bar_enabled()) for x in loggers]
    dqlab.load("latent-unet")
    assert capfd.readouterr() == ("", "")
    after = [(x.get_verbosity(), x.is_progress_bar_enabled()) for x in loggers]
    assert after == before
