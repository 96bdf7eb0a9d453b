"""A corrected pipeline on disk: what comes back, and what is refused."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMPipeline, DiffusionPipeline
from safetensors.torch import save_file
from tiny_diffusion import images, new_pipeline, sampler

import dqlab
from dqlab.errors import CheckpointError
from dqlab.methods.corrected import prediction_correction
from dqlab.metrics import error_powers
from dqlab.trajectory import record


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A quantized pipeline with a correction, and where it was saved."""
    made = dqlab.recipe("rtn") | dqlab.recipe("ptqd", samples=2)
    q = dqlab.quantize(new_pipeline(), made, 4, 8, sampler=sampler(1.0))
    folder = tmp_path_factory.mktemp("saved") / "q"
    q.save_pretrained(folder)
    return q, folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved[1], tmp_path / "q")


def test_loaded_pipeline_is_the_saved_one(saved) -> None:
    q, folder = saved
    again = dqlab.load(folder)
    assert type(again) is type(q)
    assert torch.equal(images(again, 1.0), images(q, 1.0))
    assert dqlab.describe(again) == dqlab.describe(q)
    assert dqlab.describe(q)["correction"]["kind"] == "ptqd"


@pytest.mark.parametrize("cls", [DiffusionPipeline, DDIMPipeline])
def test_plain_diffusers_refuses_the_folder(saved, cls) -> None:
    with pytest.raises((AttributeError, ValueError)):
        cls.from_pretrained(saved[1])


def test_a_missing_or_damaged_correction_is_refused(folder) -> None:
    file = folder / "correction.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-8])
    with pytest.raises(CheckpointError, match="missing or damaged"):
        dqlab.load(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="missing or damaged"):
        dqlab.load(folder)
    save_file({"k": torch.zeros(3), "mu": torch.zeros(3, 3), "s2": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match="other numbers"):
        dqlab.load(folder)


@pytest.mark.parametrize("name", ["DDIMPipeline", "CorrectedDDPMPipeline"])
def test_a_renamed_pipeline_is_refused(folder, name) -> None:
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": name}))
    with pytest.raises(CheckpointError, match=f"{name}, but its record says CorrectedDDIM"):
        dqlab.load(folder)


def test_compare_measures_after_the_correction(saved, monkeypatch, tmp_path) -> None:
    from dqlab.models.classifier import AttributeClassifier, save_classifier

    save_classifier(AttributeClassifier(), tmp_path / "models" / "attribute-classifier")
    monkeypatch.setenv("DQLAB_SHIPPED_DIR", str(tmp_path))
    pipe = new_pipeline(sample_size=32)
    made = dqlab.recipe("ptqd", samples=2)
    q = dqlab.quantize(pipe, made, 3, 8, sampler=sampler())
    found = dqlab.compare(pipe, q, num_seeds=2)
    states, _ = record(pipe, [3000, 3001], sampler())
    assert found.powers.equals(error_powers(states, q.unet, correct=prediction_correction(q)))
    assert not found.powers.equals(error_powers(states, q.unet))
    assert found.to_dict()["method"] == "ptqd(samples=2)"
