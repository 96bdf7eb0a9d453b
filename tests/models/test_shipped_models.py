"""What must hold for the models in data/, whatever their weights."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import dqlab
from dqlab import seeds
from dqlab.metrics import prompt_fidelity, quality
from dqlab.metrics.card import render
from dqlab.metrics.restoration import psnr, restore
from dqlab.metrics.video import frame_consistency
from dqlab.models.captions import attributes_of
from dqlab.models.classifier import load_classifier
from dqlab.models.families import Sampler, family_of
from dqlab.models.fashion import load_held_out
from dqlab.models.loading import read_json
from dqlab.models.tint import dress, held_out_pictures
from dqlab.models.upscaling import enlarge, shrink
from dqlab.paths import models_dir
from dqlab.reference.binary_latent_diffusion import flips
from dqlab.trajectory import record

SAMPLER = {"num_inference_steps": 5}


@pytest.fixture(scope="module")
def pipe():
    return dqlab.load("pixel-unet")


def test_classifier_reads_held_out_garments() -> None:
    """Ten garments, eight colours, four backgrounds: chance is 10, 12.5 and 25 %."""
    grey, labels = load_held_out()
    images, shown = dress(grey[:256], labels[:256], torch.Generator().manual_seed(seeds.TINT))
    answers, confidence = load_classifier().read(images)
    right = {h: float((getattr(answers, h) == getattr(shown, h)).float().mean())
             for h in ("garment", "colour", "background")}  # fmt: skip
    assert right["garment"] > 0.8
    assert min(right["colour"], right["background"]) > 0.95
    assert confidence.mean() > 0.8


def test_quantized_pixel_unet(pipe) -> None:
    states, _ = record(pipe, seeds.CALIBRATION[:2], SAMPLER)
    db = {}
    for bits in (4, 8):
        q = dqlab.quantize(pipe, "rtn", bits, bits, sampler=SAMPLER, calibration=states)
        found = dqlab.compare(pipe, q, num_seeds=2)
        assert dqlab.describe(q)["uncovered"] == []
        db[bits] = found.sqnr_db_mean
    assert db[8] > db[4] + 6
    assert found.cost.bytes < found.cost.full_bytes / 3


@pytest.mark.parametrize("name", ["latent-unet", "latent-dit", "text-dit"])
def test_a_model_paints_what_it_is_told(name) -> None:
    """Colours and backgrounds of eight captions; by chance one picture in 32 has both right."""
    pipe, wanted = dqlab.load(name), list(seeds.GALLERY[:8])
    images = family_of(pipe).run(pipe, Sampler(10), wanted)
    found = prompt_fidelity(images, attributes_of(wanted))
    assert min(found["colour"], found["background"]) >= 0.75


@pytest.mark.parametrize("name", ["video-unet", "video-dit"])
def test_a_clip_keeps_its_colours_and_moves(name) -> None:
    """By chance a frame in four has its clip's background, one in eight its colour."""
    pipe, wanted = dqlab.load(name), list(seeds.GALLERY[:2])
    clips = family_of(pipe).run(pipe, Sampler(10), wanted)
    same = frame_consistency(clips, load_classifier())
    assert min(same["colour"].mean, same["background"].mean) >= 0.75
    assert (clips[:, 1:] - clips[:, :-1]).abs().mean() > 0.001


def test_sr_unet_is_nearer_to_the_truth_than_bicubic() -> None:
    """Its card measures 1,000 pictures; here 16, in the aspect it must win by."""
    sharp = held_out_pictures()[0][:16]
    low = shrink(sharp, 16)
    restored = restore(dqlab.load("sr-unet"), low, range(16))
    assert psnr(restored, sharp).mean() > psnr(enlarge(low, 32), sharp).mean()


def test_bits_keep_a_picture() -> None:
    """20 dB is the least a code may keep; its card measures 1,000 pictures, here 64."""
    network = dqlab.load("binary-latent").autoencoder.float()
    pictures = held_out_pictures()[0][:64]
    with torch.no_grad():
        kept = network.decode(network.encode(pictures))
    assert psnr(kept, pictures).mean() > 20


def test_bits_agree_with_their_neighbours() -> None:
    """The transformer has learned what codes look like: a noisy code's flips are found.

    A network that knows the schedule alone pays the entropy of the flips, 0.5 nats on average.
    """
    pipe = dqlab.load("binary-latent")
    network, scheduler = pipe.transformer.float(), pipe.scheduler
    pictures, shown = held_out_pictures()
    g = torch.Generator().manual_seed(seeds.TRAINING)
    t = torch.arange(1, scheduler.config.num_train_timesteps + 1)
    with torch.no_grad():
        clean = pipe.autoencoder.float().encode(pictures[: len(t)])
        noisy = scheduler.add_noise(clean, torch.rand(clean.shape, generator=g), t)
        logits = network(noisy, t, class_labels=shown.garment[: len(t)]).sample
    found = binary_cross_entropy_with_logits(logits, flips(clean, noisy))
    b = (1 - scheduler.keep[1:]) / 2
    blind = -(b * b.log() + (1 - b) * (1 - b).log()).mean()
    assert found < 0.9 * blind  # 65,536 bits: some ten standard errors below


def test_shipped_files_name_no_place_on_any_machine() -> None:
    for path in models_dir().rglob("*.json"):
        assert "_name_or_path" not in path.read_text(), path


@pytest.mark.parametrize("name", sorted(quality.MEASURES))
def test_a_shipped_card_tells_what_its_records_hold(name) -> None:
    folder = models_dir() / name
    records = (read_json(folder / f"{kind}.json") for kind in ("training", "quality"))
    assert (folder / "README.md").read_text() == render(name, *records)
