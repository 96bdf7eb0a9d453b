"""The video recipes: what they start from, what they train, what plain diffusers runs."""

import pytest
import torch
from safetensors.torch import load_file

from dqlab.engine import Budget, Progress
from dqlab.errors import CheckpointError
from dqlab.models import captions, training
from dqlab.models.classifier import load_classifier
from dqlab.models.families import Sampler, family_of
from dqlab.models.loading import open_component, open_pipeline
from dqlab.models.motion import MOTIONS, motion_captions, motions_of
from dqlab.models.recipes import recipe_for
from dqlab.models.recipes.video import encode_frames
from dqlab.models.recipes.video_dit import LATENT_CHANNELS, PADDED, texts, token_counts, tokenizer
from dqlab.models.video_features import VideoFeatures, load_video_features

CPU = torch.device("cpu")
MEGABYTES = {"video-unet": 6.5, "video-dit": 6.5}
"""Of the denoiser. Its folder's copies of the autoencoder and the text encoder count as theirs."""


def train(name: str, **named):
    named = {"steps": 2, "device": "cpu", "precision": "fp32", "progress": False} | named
    return training.train_model(name, **named)


def stored(folder, part: str) -> dict[str, torch.Tensor]:
    [file] = (folder / part).glob("*.safetensors")
    return load_file(file)


def test_stops_and_goes_on_to_the_same_weights(parents, stop_before) -> None:
    whole = train("video-features", out=parents / "whole", fresh=True)
    with stop_before(1, "video-features"):
        train("video-features", out=parents / "parts", fresh=True)
    parts = train("video-features", out=parents / "parts")
    assert stored(whole, ".").keys() == stored(parts, ".").keys()
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


def test_state_of_other_origins_is_refused(parents) -> None:
    train("video-features", steps=1)
    torch.manual_seed(8)
    recipe = recipe_for("attribute-classifier")
    module = load_classifier()
    module.heads["colour"].bias += 1
    recipe.export(module, parents / "data" / "models" / "attribute-classifier")
    with pytest.raises(CheckpointError, match="another run"):
        train("video-features", steps=1)


def test_feature_net_keeps_the_classifiers_maps(parents) -> None:
    folder = train("video-features")
    net, judge = load_video_features(folder), load_classifier()
    for ours, theirs in zip(net.trunk.parameters(), judge.trunk.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for frames in (2, 8, 16):
        assert net.features(torch.zeros(3, frames, 3, 32, 32)).shape == (3, net.num_features)
    with pytest.raises(CheckpointError, match="dqlab train video-features"):
        load_video_features(parents / "nowhere")


def test_feature_net_sees_the_order_of_frames() -> None:
    net = VideoFeatures(8).eval()
    clip = torch.rand(1, 8, 3, 32, 32)
    assert not torch.allclose(net.features(clip), net.features(clip.flip(1)), atol=1e-5)


def test_encodes_frames_one_by_one(parents) -> None:
    vae = open_component("autoencoder", "AutoencoderKL")
    clips = torch.rand(2, 3, 3, 32, 32) * 2 - 1
    latents = encode_frames(vae, clips)
    assert latents.shape == (2, 4, 3, 8, 8)
    alone = vae.encode(clips[1, 2:]).latent_dist.mean[0] * vae.config.scaling_factor
    torch.testing.assert_close(latents[1, :, 2], alone, atol=1e-4, rtol=1e-4)


def test_video_unet_starts_at_the_image_model(parents) -> None:
    recipe = recipe_for("video-unet")
    module, image = recipe.model(), open_pipeline("latent-unet").unet
    x, t, words = torch.randn(2, 4, 8, 8, 8), torch.tensor([5, 700]), torch.randn(2, 16, 64)
    with torch.no_grad():
        video = module(x, t, encoder_hidden_states=words.repeat_interleave(8, 0)).sample
        frame = image(x[:, :, 3], t, encoder_hidden_states=words).sample
    torch.testing.assert_close(video[:, :, 3], frame, atol=1e-4, rtol=1e-4)
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert trained == {n for n, _ in module.named_parameters() if "motion_modules" in n}


def test_only_the_motion_modules_of_video_unet_move(parents) -> None:
    folder = train("video-unet")
    pipe = opened("AnimateDiffPipeline", folder)
    image = open_pipeline("latent-unet")
    own, theirs = pipe.unet.state_dict(), image.unet.state_dict()
    for name, value in theirs.items():
        assert torch.equal(own[name], value.half().float()), name
    outputs = [v for n, v in own.items() if n.endswith("motion_modules.0.proj_out.weight")]
    assert len(outputs) == 4
    assert all(v.any() for v in outputs)
    assert megabytes(folder / "unet") <= MEGABYTES["video-unet"]
    videos = drawn(pipe, prompt=["a red boot on a white background"] * 2, num_frames=8)
    assert videos.shape == (2, 8, 32, 32, 3)
    found = family_of(pipe).run(pipe, Sampler(1), [3, 4])
    assert found.shape == (2, 8, 3, 32, 32)


def test_video_dit_starts_at_text_dit(parents) -> None:
    recipe, image = recipe_for("video-dit"), open_pipeline("text-dit")
    network = recipe.model()["transformer"]
    theirs = image.transformer.state_dict()
    own = network.state_dict()
    for name, value in theirs.items():
        expected = value if not name.startswith("proj_out") else value[:LATENT_CHANNELS]
        assert torch.equal(own[name][: len(expected)], expected), name
    assert not own["proj_out.weight"][LATENT_CHANNELS:].any()
    ids = captions.encode(image.tokenizer, captions.every_attribute().captions()).input_ids
    ours = captions.encode(tokenizer(), captions.every_attribute().captions()).input_ids
    assert torch.equal(ids, ours)
    words = torch.randn(1, 5, 64)
    x, t = torch.randn(1, 4, 16, 8, 8), torch.tensor([300])
    with torch.no_grad():
        still = network(
            x, timestep=t, encoder_hidden_states=words, enable_temporal_attentions=False
        ).sample
        frame = image.transformer(x[:, :, 5], timestep=t, encoder_hidden_states=words).sample
    torch.testing.assert_close(still[:, :LATENT_CHANNELS, 5], frame, atol=1e-4, rtol=1e-4)


def test_no_outline_shows_through_the_last_noise_of_video_dit() -> None:
    """The average of 16 frames: sqrt(16 abar) of signal to 1 of noise; text-dit's ends at 0.27."""
    last = recipe_for("video-dit").scheduler().alphas_cumprod[-1]
    assert (16 * last).sqrt() < 0.03


def test_what_video_dit_inherits_moves_slower(parents) -> None:
    recipe = recipe_for("video-dit")
    module = recipe.model()
    fast, slow = recipe.parameters(module)
    names = {id(p): name for name, p in module.named_parameters()}
    assert {names[id(p)].split(".")[1] for p in fast["params"]} == {"temporal_transformer_blocks"}
    assert not any("temporal" in names[id(p)] for p in slow["params"])
    assert len(fast["params"]) + len(slow["params"]) == len(names)
    assert slow["lr"] < recipe.settings["lr"]


def test_video_dit_after_training(parents) -> None:
    folder = train("video-dit")
    assert megabytes(folder / "transformer") <= MEGABYTES["video-dit"]
    pipe = opened("LattePipeline", folder)
    last = pipe.transformer.proj_out
    assert last.weight[:LATENT_CHANNELS].any()
    assert not last.weight[LATENT_CHANNELS:].any()
    assert not last.bias[LATENT_CHANNELS:].any()
    family = family_of(pipe)
    told = family.arguments(pipe, Sampler(1), [3, 4])["prompt_embeds"]
    asked = motion_captions(captions.attributes_of([3, 4]), motions_of([3, 4]))
    wanted = pipe.encode_prompt(asked, clean_caption=False)[0]
    torch.testing.assert_close(told, wanted)
    assert family.run(pipe, Sampler(1), [3, 4]).shape == (2, 16, 3, 32, 32)


@pytest.mark.parametrize("several", [False, True], ids=["alone", "several"])
def test_training_reads_captions_as_the_pipeline_does(parents, several) -> None:
    """One token for all padding, counted by its score, is the pipeline's padding exactly."""
    recipe = recipe_for("video-dit")
    module = recipe.model()
    recipe.export(module, parents / "latte")
    pipe = opened("LattePipeline", parents / "latte")
    pipe.transformer.load_state_dict(module["transformer"].state_dict())
    number = 9 * 137 + 4
    prompts = [texts()[number]] * (2 if several else 1)
    words, empty = pipe.encode_prompt(prompts, clean_caption=False)
    x, t = torch.randn(1, 4, 16, 8, 8), torch.tensor([600])
    ask = recipe.ask(module, CPU)
    assert words.shape[1] == (PADDED if several else token_counts()[number])
    for row, read in ((number, words), (len(texts()) - 1, empty)):
        with torch.no_grad():
            shipped = pipe.transformer(x, timestep=t, encoder_hidden_states=read[:1]).sample
            own = ask(x, t, torch.tensor([[row, words.shape[1]]]))
        torch.testing.assert_close(own, shipped[:, :LATENT_CHANNELS], atol=1e-4, rtol=1e-4)


def test_every_text_of_video_dit_has_its_words() -> None:
    encoded = captions.encode(tokenizer(), texts())
    assert len(texts()) == (len(MOTIONS) + 1) * captions.NO_CAPTION + 1
    assert torch.equal(encoded.attention_mask.sum(1), token_counts())
    assert not (encoded.input_ids == tokenizer().unk_token_id).any()
    assert not encoded.attention_mask[:, -1].any()


@pytest.mark.parametrize("name", MEGABYTES)
def test_every_trained_part_learns(parents, name) -> None:
    torch.manual_seed(2)
    task = recipe_for(name).task(Budget(steps=1), CPU)
    with torch.no_grad():
        for value in task.module.parameters():
            if value.requires_grad:
                value.add_(0.05 * torch.randn_like(value))
    task.loss(task.batch(torch.Generator().manual_seed(1)), Progress(0, 0.0)).backward()
    trained = {n: p for n, p in task.module.named_parameters() if p.requires_grad}
    still = [n for n, p in trained.items() if p.grad is None or not p.grad.any()]
    # A softmax does not see what moves all its scores alike.
    assert [n for n in still if not n.endswith("to_k.bias")] == []
    assert sum(len(g["params"]) if isinstance(g, dict) else 1
               for g in task.stages[0].parameters) == len(trained)  # fmt: skip


def opened(class_name: str, folder):
    import diffusers

    pipe = getattr(diffusers, class_name).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, **named):
    named = {"num_inference_steps": 1, "guidance_scale": 2.0, "output_type": "np"} | named
    return pipe(generator=torch.Generator().manual_seed(0), **named).frames


def megabytes(folder) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors")) / 1e6
