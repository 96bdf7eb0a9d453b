"""latent-dit and text-dit: a few steps, then what plain diffusers makes of the folder."""

import pytest
import torch

import dqlab
from dqlab.errors import CheckpointError
from dqlab.metrics import quality
from dqlab.metrics.card import render
from dqlab.models import captions, training
from dqlab.models.families import Sampler, family_of
from dqlab.models.recipes import recipe_for
from dqlab.models.recipes.latent import stored_latents
from dqlab.models.recipes.latent_dit import NULL_LABEL, SummedLabels
from dqlab.models.tint import Attributes

MEGABYTES = {"latent-dit": 5.5, "text-dit": 4.5}
"""What each may weigh in data/, its copy of the autoencoder included."""
CPU = torch.device("cpu")


def train(name: str, **named):
    named = {"steps": 2, "device": "cpu", "precision": "fp32", "progress": False} | named
    return training.train_model(name, **named)


def awake(module):
    """Weights away from zero: what begins as the identity hides what its blocks do."""
    torch.manual_seed(3)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return module.eval()


def opened(class_name: str, folder):
    import diffusers

    pipe = getattr(diffusers, class_name).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, seed: int = 0, **named):
    named = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"} | named
    return pipe(generator=torch.Generator().manual_seed(seed), **named).images


def size_in_megabytes(folder) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors")) / 1e6


@pytest.mark.parametrize("name", MEGABYTES)
def test_stops_and_goes_on_to_the_same_weights(untrained_parts, name, stop_before) -> None:
    whole = train(name, out=untrained_parts / "whole", fresh=True)
    with stop_before(1, name):
        train(name, out=untrained_parts / "parts", fresh=True)
    parts = train(name, out=untrained_parts / "parts")
    files = sorted(p.relative_to(whole) for p in whole.rglob("*.safetensors"))
    assert files
    for file in files:
        assert (whole / file).read_bytes() == (parts / file).read_bytes(), file
    assert size_in_megabytes(whole) <= MEGABYTES[name]


def test_plain_diffusers_runs_latent_dit(untrained_parts) -> None:
    recipe, folder = recipe_for("latent-dit"), untrained_parts / "dit"
    trained = awake(recipe.model())
    recipe.export(trained, folder)
    pipe = opened("DiTPipeline", folder)
    asked = "a teal sneaker on a grey background"
    [label] = pipe.get_label_ids([asked])
    assert captions.every_attribute().captions()[label] == asked
    images = draw(pipe, class_labels=[label, label + 1])
    assert images.shape == (2, 32, 32, 3)
    assert pipe.transformer.dtype is torch.float32
    x, t, labels = torch.randn(3, 4, 8, 8), torch.tensor([5, 500, 999]), [0, 319, NULL_LABEL]
    with torch.no_grad():
        shipped = pipe.transformer(x, timestep=t, class_labels=torch.tensor(labels)).sample
        labels[-1] = captions.NO_CAPTION
        own = recipe.ask(trained, CPU)(x, t, torch.tensor(labels))
    torch.testing.assert_close(shipped, own, rtol=0, atol=0.01 * float(own.abs().max()))


def test_plain_diffusers_runs_text_dit(untrained_parts) -> None:
    recipe, folder = recipe_for("text-dit"), untrained_parts / "pixart"
    trained = awake(recipe.model())
    recipe.export(trained, folder)
    pipe = opened("PixArtAlphaPipeline", folder)
    assert {next(pipe.components[n].parameters()).dtype for n in ("transformer", "text_encoder")} \
        == {torch.float32}  # fmt: skip
    named = {"use_resolution_binning": False, "clean_caption": False, "num_inference_steps": 1}
    images = draw(pipe, prompt="a red boot on a white background", **named)
    assert images.shape == (1, 32, 32, 3)
    assert not (images == draw(pipe, prompt="a blue bag on a black background", **named)).all()
    told = []
    hook = pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: told.append((args, kwargs, output)), with_kwargs=True
    )
    draw(pipe, prompt="a red boot on a white background", **named)
    hook.remove()
    [((x,), asked, (answer,))] = told
    numbers = torch.tensor([captions.NO_CAPTION, _number("a red boot on a white background")])
    with torch.no_grad():
        own = recipe.ask(trained, CPU)(x, asked["timestep"], numbers)
    # The pipeline pads to 120 tokens and training to 16: masked, so that it makes no difference.
    torch.testing.assert_close(answer, own, rtol=0, atol=0.01 * float(own.abs().max()))


@pytest.mark.parametrize("name", MEGABYTES)
def test_families_ask_for_what_each_seed_shows(untrained_parts, name) -> None:
    """A picture is judged by its seed's attributes, so these must be what the network is told."""
    recipe, folder = recipe_for(name), untrained_parts / "data" / "models" / name
    recipe.export(awake(recipe.model()), folder)
    pipe, seeds = dqlab.load(name), [3, 4]
    asked = captions.attributes_of(seeds).captions()
    told = family_of(pipe).arguments(pipe, Sampler(), seeds)
    shown = told.get("prompt") or _names(pipe, told["class_labels"])
    assert shown == asked
    images = family_of(pipe).run(pipe, Sampler(num_inference_steps=1), seeds)
    assert images.shape == (2, 3, 32, 32)


def test_card_holds_what_was_measured(untrained_parts, monkeypatch) -> None:
    train("latent-dit", steps=1)
    measured = {"confidence": 0.875, "sampler": {"eta": 1.0}}
    monkeypatch.setitem(quality.MEASURES, "latent-dit", lambda folder: dict(measured))
    asked = []

    def census(pipe, sampler) -> dict:
        asked.append(sampler)
        return {"drift": {"largest": 5.25}}

    card = quality.write_card("latent-dit", census)
    assert asked == [measured["sampler"]]
    text = card.read_text()
    assert "`dqlab train latent-dit --steps 1`" in text
    assert "| confidence | 0.875 |" in text
    assert "| phenomena drift largest | 5.25 |" in text
    dqlab.load("latent-dit")


def test_a_record_without_a_budget_is_told_in_minutes() -> None:
    stages = [{"name": "a", "steps": 9, "seconds": 61.0}, {"name": "b", "steps": 9, "seconds": 1}]
    text = render("latent-dit", {"stages": stages, "curve": []}, {})
    assert "`dqlab train latent-dit --minutes 2`" in text


def _names(pipe, labels: list[int]) -> list[str]:
    by_number = {number: text for text, number in pipe.labels.items()}
    return [by_number[label] for label in labels]


def _number(caption: str) -> int:
    return captions.every_attribute().captions().index(caption)


@pytest.mark.parametrize("name", MEGABYTES)
def test_begins_at_zero_and_every_part_learns(untrained_parts, name) -> None:
    """adaLN-Zero: the output starts at zero; the first steps must wake whatever is behind it."""
    recipe = recipe_for(name)
    module = recipe.model()
    ask, x, t = recipe.ask(module, CPU), torch.randn(4, 4, 8, 8), torch.tensor([1, 300, 600, 999])
    number = torch.tensor([0, 5, 319, captions.NO_CAPTION])
    assert not ask(x, t, number).any()
    awake(module)
    ask(x, t, number).square().sum().backward()
    still = [n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()]
    # The bias of the keys moves all scores of a query alike, which a softmax does not see.
    assert [n for n in still if not n.endswith("to_k.bias")] == []


def test_label_table_is_the_sum_of_its_parts() -> None:
    table = SummedLabels(6)
    number = int(captions.caption_number(Attributes(*torch.tensor([[3], [1], [2]]))))
    parts = table.parts
    summed = parts["garment"][3] + parts["colour"][1] + parts["background"][2]
    assert torch.equal(table(torch.tensor(number)), summed)
    unlabelled = table(torch.tensor([captions.NO_CAPTION, NULL_LABEL]))
    assert torch.equal(unlabelled, table.unlabelled.expand(2, -1))


def test_caption_numbers_count_every_caption() -> None:
    numbers = captions.caption_number(captions.every_attribute())
    assert numbers.tolist() == list(range(captions.NO_CAPTION))


def test_t5_tokenizer_has_a_token_for_every_word(tmp_path) -> None:
    from transformers import T5Tokenizer

    tokenizer = captions.build_t5_tokenizer()
    texts = [*captions.every_attribute().captions(), ""]
    encoded = captions.encode(tokenizer, texts)
    words = torch.tensor([len(text.split()) for text in texts])
    assert torch.equal(encoded.attention_mask.sum(1), words + 1)
    assert not (encoded.input_ids == tokenizer.unk_token_id).any()
    ends = encoded.input_ids.gather(1, words[:, None])
    assert (ends == tokenizer.eos_token_id).all()
    assert tokenizer.batch_decode(encoded.input_ids, skip_special_tokens=True) == texts
    tokenizer.save_pretrained(tmp_path)
    again = captions.encode(T5Tokenizer.from_pretrained(tmp_path), texts)
    assert torch.equal(again.input_ids, encoded.input_ids)


def test_latents_are_encoded_once_for_one_autoencoder(untrained_parts, monkeypatch) -> None:
    import diffusers

    latents, shown = stored_latents(2)
    assert latents.shape == (80, 4, 8, 8)
    assert latents.dtype is torch.float16
    assert not torch.equal(shown[:40], shown[40:])
    assert float(latents.float().std()) == pytest.approx(1, rel=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(diffusers.AutoencoderKL, "encode", None)
        assert torch.equal(stored_latents(2)[0], latents)
    other = recipe_for("autoencoder")
    torch.manual_seed(9)
    other.export(other.model(), untrained_parts / "data" / "models" / "autoencoder")
    assert not torch.equal(stored_latents(2)[0], latents)


def test_damaged_latents_are_refused(untrained_parts) -> None:
    stored_latents(1)
    [path] = (untrained_parts / "state" / "latents").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="Delete it"):
        stored_latents(1)
