import pytest
import torch
from tiny_models import seeded

import dqlab
from dqlab import seeds
from dqlab.errors import InvalidInputError, NotApplicableError, UnknownNameError
from dqlab.metrics import restoration
from dqlab.models.families import Sampler, family_of
from dqlab.models.pipelines.binary_latent import (
    BernoulliScheduler,
    BinaryLatentPipeline,
    uniform,
)
from dqlab.models.pipelines.binary_networks import BinaryAutoencoder, BinaryTransformer
from dqlab.models.tint import Attributes
from dqlab.reference import binary_latent_diffusion as paper
from dqlab.trajectory import record

SAMPLER = {"num_inference_steps": 3}
STEPS, BITS = 8, 4


def new_autoencoder() -> BinaryAutoencoder:
    return seeded(lambda: BinaryAutoencoder(BITS, 8, (8, 8), norm_num_groups=4)).eval()


def new_transformer() -> BinaryTransformer:
    shape = {"cells": 16, "width": 16, "layers": 2, "heads": 2, "num_train_timesteps": STEPS}
    network = seeded(lambda: BinaryTransformer(BITS, **shape)).eval()
    with torch.no_grad():
        network.class_token.weight.mul_(20)  # an untrained network hardly hears its class
        network.blocks[0].attn1.to_out[0].weight.mul_(10)
        network.bits_out.weight.mul_(5)
    return network


@pytest.fixture(scope="module")
def pipe():
    """Codes of 4x4 cells for pictures of 8x8; random weights."""
    made = BinaryLatentPipeline(new_autoencoder(), new_transformer(), BernoulliScheduler(STEPS))
    made.set_progress_bar_config(disable=True)
    return made


def code(*shape: int) -> torch.Tensor:
    return torch.randint(2, shape).float()


def test_codes_are_bits_row_by_row() -> None:
    network, images = new_autoencoder(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        p = network.probabilities(images)
        likely = network.encode(images)
        assert p.shape == (2, BITS, 4, 4)
        assert likely.shape == (2, 16, BITS)
        assert torch.equal(likely[1, 6], (p[1, :, 1, 2] > 0.5).float())
        assert (network.encode(images, torch.zeros_like(p)) == 1).all()
        assert (network.encode(images, torch.ones_like(p)) == 0).all()
        torch.testing.assert_close(network.decode(likely), network(images))


def test_the_decoder_reads_the_sum_of_the_bits_embeddings() -> None:
    network, z = new_autoencoder(), code(1, 16, BITS)
    seen = []
    network.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        network.decode(z)
        expected = paper.embed(z, network.embed.weight[:, :, 0, 0].T)
    torch.testing.assert_close(seen[0].flatten(2).transpose(1, 2), expected)


def test_gradients_pass_the_bits() -> None:
    network = new_autoencoder()
    network(torch.randn(2, 3, 8, 8), torch.rand(2, BITS, 4, 4)).square().mean().backward()
    assert network.encoder.conv_in.weight.grad.abs().sum() > 0


def test_what_does_not_fit_an_autoencoder_is_refused() -> None:
    network = new_autoencoder()
    with pytest.raises(InvalidInputError, match=r"9x8 do not divide into cells of 2x2"):
        network.encode(torch.zeros(1, 3, 9, 8))
    with pytest.raises(InvalidInputError, match=r"5 bits per cell does not fit .* has 4"):
        network.decode(code(1, 16, 5))
    with pytest.raises(InvalidInputError, match=r"from -1 to 1"):
        network.decode(2 * code(1, 16, BITS) - 1)


def test_the_transformer_tells_rows_times_and_classes_apart() -> None:
    network, x = new_transformer(), code(1, 16, BITS).expand(4, -1, -1)
    t, labels = torch.tensor([1, 1, 5, 1]), torch.tensor([0, 0, 0, 3])
    with torch.no_grad():
        out = network(x, t, class_labels=labels).sample
        alone = network(x[:1], 1, class_labels=labels[:1]).sample
        unlabelled = network(x[:1], torch.tensor(1)).sample
        none = network(x[:1], 1, class_labels=torch.tensor([10])).sample
    torch.testing.assert_close(out[:1], alone)
    assert torch.equal(out[0], out[1])
    assert not torch.allclose(out[0], out[2])
    assert not torch.allclose(out[0], out[3])
    assert torch.equal(unlabelled, none)


@pytest.mark.parametrize("t", [0, STEPS + 1])
def test_timesteps_outside_the_process_are_refused(t) -> None:
    with pytest.raises(InvalidInputError, match=r"this model knows 1 to 8 \(0 is the clean code"):
        new_transformer()(code(1, 16, BITS), t)


def test_steps_draw_from_the_papers_posterior() -> None:
    """20,000 bits of one probability: their mean within three standard errors."""
    for name, posterior in paper.POSTERIORS.items():
        scheduler = BernoulliScheduler(STEPS, posterior=name)
        scheduler.set_timesteps(4)
        t, s = scheduler.timesteps[1:3].tolist()
        x, logits = torch.ones(1, 5000, 4), torch.full((1, 5000, 4), 0.4)
        drawn = scheduler.step(logits, t, x, 0.5, torch.Generator().manual_seed(0)).prev_sample
        p0 = paper.clean_probability(logits, x, 0.5)
        p = float(posterior(p0, x, scheduler.keep[t], scheduler.keep[s])[0, 0, 0])
        assert float(drawn.mean()) == pytest.approx(p, abs=3 * (p * (1 - p) / 20_000) ** 0.5)


def test_the_last_step_takes_the_likelier_bit() -> None:
    scheduler = BernoulliScheduler(STEPS)
    scheduler.set_timesteps(2)
    x, logits = code(1, 16, BITS), torch.randn(1, 16, BITS)
    (found,) = scheduler.step(logits, 1, x, return_dict=False)
    assert torch.equal(found, torch.where(logits > 0, 1 - x, x))
    with pytest.raises(InvalidInputError, match=r"Timestep 5 is not one of the 2 that are set"):
        scheduler.step(logits, 5, x)


def test_noise_flips_as_often_as_it_should() -> None:
    scheduler = BernoulliScheduler(STEPS)
    clean, t = code(3, 2000, 4), torch.tensor([1, 4, 8])
    noisy = scheduler.add_noise(clean, torch.rand(clean.shape), t)
    rate = (noisy != clean).float().mean((1, 2))
    for found, b in zip(rate.tolist(), (1 / 16, 1 / 4, 1 / 2), strict=True):
        assert found == pytest.approx(b, abs=3 * (b * (1 - b) / 8000) ** 0.5)


def test_unknown_posterior_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="'exact'; there are plugin, mixture"):
        BernoulliScheduler(STEPS, posterior="exact")


def test_each_generator_draws_its_own_row() -> None:
    both = uniform((2, 3), [torch.Generator().manual_seed(s) for s in (1, 2)], "cpu")
    second = uniform((1, 3), torch.Generator().manual_seed(2), "cpu")
    assert torch.equal(both[1:], second)
    assert not torch.equal(both[0], both[1])


def test_samples_depend_on_seed_class_and_guidance(pipe) -> None:
    def sampled(seed=1, **more):
        options = {"class_labels": [3], "num_inference_steps": 3, "output_type": "pt"} | more
        return pipe(generator=torch.Generator().manual_seed(seed), **options).images

    base = sampled()
    assert base.shape == (1, 3, 8, 8)
    assert torch.equal(base, sampled())
    for other in (sampled(seed=2), sampled(class_labels=[4]), sampled(guidance_scale=30.0)):
        assert not torch.equal(base, other)
    assert torch.equal(sampled(class_labels=[10]), sampled(class_labels=None))
    assert sampled(class_labels=None, batch_size=2).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("bad", "said"),
    [({"class_labels": []}, "at least one"), ({"class_labels": [11]}, "from 0 to 10"),
     ({"class_labels": [-1]}, "from 0 to 10"), ({"num_inference_steps": 1}, "2 to 8"),
     ({"num_inference_steps": 9}, "2 to 8"), ({"temperature": 0.0}, "temperature=0")],
)  # fmt: skip
def test_impossible_calls_are_refused(pipe, bad, said) -> None:
    with pytest.raises(InvalidInputError, match=said):
        pipe(**{"num_inference_steps": 2} | bad)


def test_folder_comes_back(pipe, tmp_path) -> None:
    pipe.save_pretrained(tmp_path / "bits")
    again = dqlab.load(tmp_path / "bits")
    assert type(again) is BinaryLatentPipeline
    assert again.scheduler.config.num_train_timesteps == STEPS
    seen = [family_of(p).run(p, Sampler(3), [0, 1]) for p in (pipe, again)]
    assert torch.equal(*seen)


def test_states_hold_bits_and_both_guidance_branches(pipe) -> None:
    chosen = Sampler(3, guidance_scale=2.0)
    states, images = record(pipe, [0, 1], chosen)
    assert images.shape == (2, 3, 8, 8)
    assert states.x.shape == (12, 16, BITS)
    paper.check_bits(states.x)
    assert states.t.unique().tolist() == [1, 4, 8]
    assert (states.conditions["class_labels"][states.branch == 0] == 10).all()
    answer, _ = states.guided(states.output)
    plain, asked = (states.output[states.branch == branch] for branch in (0, 1))
    torch.testing.assert_close(answer, plain + 2 * (asked - plain))


def test_its_transformer_is_quantized_saved_and_restored(pipe, tmp_path) -> None:
    q = dqlab.quantize(pipe, "rtn", 8, 8, sampler=SAMPLER)
    assert dqlab.describe(q)["uncovered"] == []
    q.save_pretrained(tmp_path / "q")
    again = dqlab.load(tmp_path / "q")
    x, options = code(2, 16, BITS), {"timestep": 4, "class_labels": torch.tensor([1, 2])}
    with torch.no_grad():
        full, rounded, restored = (p.transformer(x, **options).sample for p in (pipe, q, again))
    assert torch.equal(rounded, restored)
    assert 0 < (full - rounded).square().mean() < 0.01 * full.square().mean()


@pytest.mark.parametrize("options", [{}, {"vsc": False}])
def test_corrections_of_gaussian_noise_are_refused(pipe, options) -> None:
    with pytest.raises(NotApplicableError, match="ptqd"):
        dqlab.quantize(pipe, dqlab.recipe("ptqd", **options), 8, 8, sampler=SAMPLER)


def test_the_method_names_the_model_to_load(pipe) -> None:
    for name in ("binary-latent-diffusion", "binary_latent_diffusion"):
        with pytest.raises(NotApplicableError, match=r"Load it: dqlab\.load\('binary-latent'\)"):
            dqlab.quantize(pipe, name, 4, 8)
    (row,) = (r for r in dqlab.methods_table() if r["slug"] == "binary-latent-diffusion")
    assert row["kind"] == "model"
    assert row["applies_to"] == []


def test_codes_are_measured(pipe, monkeypatch) -> None:
    """A decoder of zeros against pictures of 0.2: 10 log10(4 / 0.04) = 20 dB."""
    real = torch.full((6, 3, 8, 8), 0.2)
    shown = Attributes(*torch.zeros(3, 6, dtype=torch.int64))
    monkeypatch.setattr(restoration, "held_out_pictures", lambda: (real, shown))
    monkeypatch.setattr(restoration, "BATCH", 4)
    with monkeypatch.context() as patch:
        patch.setattr(BinaryAutoencoder, "decode", lambda self, z: torch.zeros(len(z), 3, 8, 8))
        found = restoration.code_quality(pipe)
    assert found["bits_per_picture"] == 16 * BITS
    assert found["psnr_db"] == {"likelier_bits": 20.0, "drawn_bits": 20.0}
    assert 0 <= found["bits_with_rate_between_5_and_95_percent"] <= 1
    rows = found["bit_accuracy"]
    assert [(row["t_from"], row["t_to"]) for row in rows] == [(t, t) for t in range(1, STEPS + 1)]
    assert rows[0]["copying"] > rows[-1]["copying"]


def test_bit_accuracy_of_a_network_that_knows(pipe) -> None:
    clean = code(1, 16, BITS).expand(5, -1, -1)

    class Knows(BinaryTransformer):
        def forward(self, sample, timestep, class_labels=None):
            wrong = (sample != clean[: len(sample)]).float()
            return type("Output", (), {"sample": 2 * wrong - 1})

    knowing = BinaryLatentPipeline(pipe.autoencoder, Knows(BITS), pipe.scheduler)
    rows = restoration.bit_accuracy(knowing, clean, torch.zeros(5, dtype=torch.int64))
    assert all(row["accuracy"] == 1 for row in rows)


def test_quality_seeds_draw_their_garments(pipe) -> None:
    from dqlab.models.captions import attributes_of

    chosen = list(seeds.QUALITY[:5])
    asked = family_of(pipe).conditions(pipe, chosen)
    assert asked == {"class_labels": attributes_of(chosen).garment.tolist()}
