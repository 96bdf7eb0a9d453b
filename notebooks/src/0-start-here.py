# %% [markdown]
# # Start here: what few bits do to a diffusion model
#
# A diffusion model paints by asking one neural network the same question many times: how much of
# this is noise? Quantization lets that network work with few bits. This notebook shows, in
# fourteen scenes, what breaks, where, and why. Each scene is one question, one picture, one thing
# to do, one computed number, and one belief that the number tests.
#
# - **You will be able to** read a decibel curve over sampling steps; choose a scale, a zero point
#   and a clip point; tell fresh error from inherited error; and say which of five moments a
#   quantization method acts on.
# - **Needs** PyTorch at the level of a training loop. No knowledge of diffusion or quantization.
# - **Run time**: {{run time}}. Reading and playing take about an hour; rest after scene 7.
# - **Papers**: none yet. The map at the end leads to all 27 of the survey and to the notebooks
#   that take them apart.
#
# Predict before you look: questions keep your answer and show it beside the result.
# <!-- numbers: 27 -->

# %% tags=["setup"]
import torch

import dqlab
from dqlab import metrics, seeds, show
from dqlab import phenomena as ph
from dqlab.formats import Affine, Range
from dqlab.phenomena import gallery as samples
from dqlab.phenomena import start_here as shipped
from dqlab.phenomena.stored import redo
from dqlab.phenomena.verdicts import belief
from dqlab.show import charts, start_here
from dqlab.show.questions import nearest, question
from dqlab.trajectory import record

dqlab.setup()

# %% [markdown]
# The model is `pixel-unet`: a small U-Net that paints tinted garments, 32 pixels wide. We run it
# from eight fixed seeds, 20 sampler steps each, and write down everything the network was asked.
# <!-- numbers: 32, 20 -->

# %%
pipe = dqlab.load("pixel-unet")
states, images = record(pipe, seeds.GALLERY[:8])
print(f"{len(images)} pictures; the network answered {len(states)} questions.")

# %% [markdown]
# Some measurements take minutes. They were made beforehand and are stored with their origin.
# Where a scene uses them, it computes one of the numbers again, and stops with an error if the two
# differ.

# %%
results = ph.stored.load("start-here")
results

# %% [markdown]
# ## Scene 1. What do 4 bits do to a picture?
#
# Quantization rounds numbers to a few allowed values. With 4 bits there are 16 of them.
# `quantize` with the recipe `rtn` (round to nearest) makes a copy whose weights (W) and
# activations (A) are rounded so; W4A4 says how finely. To choose the values it watches 32
# calibration runs. The first and last layer keep 8 bits.
# <!-- numbers: 32 -->

# %%
calibration, _ = record(pipe, seeds.CALIBRATION[:32])
print(f"{len(calibration)} questions to calibrate on.")

# %%
w4a4 = dqlab.quantize(pipe, "rtn", weights=4, activations=4, calibration=calibration)
pictures = shipped.pictures(results)
rounded = (images * 15).round() / 15
rows = {"full_precision": images, "picture in 4 bits": rounded, "rtn": pictures[4, 4]}
looks = {"picture in 4 bits": "ablation_1"}
show.image_grid(rows, roles=looks, count=5, value_range=(0, 1))

# %% [markdown]
# Row 2 stores the *finished picture* with 16 values per colour. Row 3 lets the *network* compute
# with 16 values, twenty times in a row. Now move the bits yourself.

# %% tags=["explorer"]
start_here.bits_explorer(pictures, shipped.BITS)

# %%
net = float((pictures[4, 4] - images).square().mean())
measured = ph.verdicts.picture_or_net(net, float((rounded - images).square().mean()))
belief("Fewer bits mean fewer colours.", measured, refuted_by=["holds"])

# %% [markdown]
# ## Scene 2. How is a picture destroyed?
#
# Training mixes a picture $x_0$ with noise $\varepsilon$. At time $t$ the mixture is
# $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$. Power is amplitude
# squared, so $\bar\alpha_t$ (`abar` in code) would be the picture's share of the power, if picture
# and noise had equal power. Ours have less, so they drown sooner. Time $t$ counts from 0, clean,
# to 999, noise only. We draw it from noise, left, to picture, right.
# <!-- numbers: 999 -->

# %%
crossing = ph.schedule.equal_shares(pipe.scheduler)
asked = question(2, nearest(crossing, {"A": 260, "B": 500, "C": 750}))
asked

# %%
share = ph.schedule.shares(pipe.scheduler)
left = 100 * share["signal"][500]
chart = charts.lines(
    share.melt("t", var_name="series", value_name="share").iloc[::10],
    f"abar falls to one half at t = {crossing}; at t = 500 it is only {left:.1f} %.",
    x="t",
    y="share",
    falling=True,
    at=(crossing, "one half"),
    axes=("t (noise → picture)", "share, if powers were equal"),
    roles={"signal": "full_precision", "noise": "ablation_2"},
)
asked.reveal(chart)

# %%
times = [999, 749, 499, 249, 99, 0]
mixed = ph.schedule.noised(images[0] * 2 - 1, times, pipe.scheduler)
heads = [f"t = {t}\nabar {share['signal'][t]:.0%}" for t in times]
power = float((images[0] * 2 - 1).square().mean())
words = f"Seed 0's picture has {power:.2g} of the noise's power, so it shows later than abar says."
charts.picture_rows({"mixture": mixed}, heads, words, roles={"mixture": "full_precision"})

# %% [markdown]
# > **"At t = 500 half of the picture is left."** The number in the title above says otherwise: $t$
# > is a label, not a share.
# <!-- numbers: 500 -->
#
# ## Scene 3. What does the network answer?
#
# Sampling runs backwards: step 0 is $t = 999$, the last step $t = 49$. The network sees $x_t$ and
# $t$ and predicts the noise. Take that noise away and its guess of the finished
# picture is left:
# $\hat x_0 = (x_t - \sqrt{1-\bar\alpha_t}\,\hat\varepsilon) / \sqrt{\bar\alpha_t}$.
# Near pure noise we divide by almost nothing, so every flaw of the answer is magnified.
# <!-- numbers: 999, 49 -->

# %%
one = states[states.seed == 0]
picked = [0, 5, 10, 15, 19]
guess = ph.schedule.implied_image(one, pipe.scheduler)[picked]
rows = {"input": one.x[picked] / 2, "predicted noise": one.output[picked] / 3, "guess": guess}
heads = [f"step {k}\nt = {int(one.t[k])}" for k in picked]
words = "One question at five steps: input, predicted noise, and the picture it implies."
looks = {"input": "full_precision", "predicted noise": "ablation_2", "guess": "method"}
charts.picture_rows(rows, heads, words, roles=looks)

# %%
error = ph.chain.mean_error(ph.chain.implied_error(states, images, pipe.scheduler))
for step in (0, 5, 10, 15):
    row = error.set_index("step").loc[step]
    times = ph.schedule.magnification(pipe.scheduler, int(row["timestep"]))
    print(
        f"step {step:2}: flaws (amplitude) × {times:.3g}; guess misses by {row['error']:.3g} (MSE)"
    )

# %% [markdown]
# MSE is the mean squared error to the picture that the run ends with, colours between 0 and 1.
#
# > **"The network paints the picture in one call."** An early call gives noise, a middle one a
# > blur: roughly the average of all pictures that are still possible.
#
# ## Scene 4. How does noise become a garment?
#
# The *sampler* moves a little towards the guess, asks again, and so on: twenty *steps*. A
# classifier names garment, colour and background of each guess. We ask from which step on the
# name stays. Change the seed.

# %% tags=["explorer"]
settled = ph.chain.settle_steps(states, pipe.scheduler)
start_here.seed_explorer(states, pipe.scheduler, settled)

# %%
steady = ph.verdicts.settled(settled, total=20)
belief("Every step paints equally much.", steady, refuted_by=["early", "late"])

# %% [markdown]
# ## Scene 5. What is a level?
#
# Real numbers from inside the network: what enters the attention in the middle of the U-Net.
# Rounding moves each to the nearest of $2^b$ *levels*, $\hat x = s\,(q - z)$, with the integer
# code $q = \mathrm{round}(x/s) + z$, kept within $0 \dots 2^b-1$. The *scale* $s$ is the distance
# of two levels; the *zero point* $z$ is the code of 0. The comb below the histogram shows them.

# %% tags=["explorer"]
site = "mid_block.attentions.0.to_q.input"
watched = ph.drift.watchable(pipe, states)
values = ph.drift.values_at(watched, states[states.step == 10], site)
start_here.levels_explorer(values)

# %% [markdown]
# A value between two levels is off by at most $s/2$. If it may lie anywhere between them, the
# error has variance $s^2/12$. Check:

# %%
for b in (2, 3, 4, 6, 8):
    fact = ph.levels.rounding_error(values, *ph.levels.fitted(values, b))
    print(
        f"{b} bits: s = {fact['scale']:.3g}, error variance {fact['ratio']:.3f} × s²/12,",
        f"SQNR {fact['sqnr_db']:.1f} dB",
    )

# %% [markdown]
# SQNR, the *signal-to-quantization-noise ratio*, is $10\log_{10}$ of signal power over error
# power, in decibels (dB). At 10 dB the error has a tenth of the power, at 20 dB a hundredth. Up is
# better. A further bit doubles the number of levels, so $s$ about halves: some 6 dB.
# <!-- numbers: 10, 20, 6 -->
#
# > **"Large values get large errors."** Inside the comb all errors are alike: at most half a step.
# > Only beyond its ends do they grow.
#
# ## Scene 6. Is clipping a mistake?
#
# *Min-max* stretches the comb until the most extreme value has a level. That makes $s$ large. The
# other choice is to *clip*: smaller steps for the many, a large error for the few.

# %%
gauss = ph.levels.gaussian()
curve = ph.levels.clip_curve(gauss, 4, (*start_here.CLIPS, float(gauss.abs().max())))
loss = ph.levels.min_max_loss(curve)
asked = question(6, nearest(loss["loss_db"], {"A": 0, "B": 1, "C": 4}))
asked

# %%
clip = start_here.clip_explorer(gauss)
asked.reveal(clip.frame(clip.presets["4 bits, best"])[0])

# %% tags=["explorer"]
clip

# %%
belief("Min-max is safe.", ph.verdicts.clipping(loss, 4), refuted_by=["clip"])

# %% [markdown]
# ## Scene 7. One comb for whom?
#
# A weight matrix has a row per output channel. One scale for all must reach the largest weight
# anywhere; a scale per row fits its row. Switch, and watch scales (left) and errors (right).

# %% tags=["explorer"]
weights = dict(ph.levels.weights_of(pipe.unet))
gains = ph.levels.granularity(weights.items(), 4)
start_here.granularity_explorer(weights["up_blocks.0.resnets.0.conv1"], 4)

# %%
belief("Bits alone set the error.", ph.verdicts.granularity(gains), refuted_by=["holds"])

# %% [markdown]
# From here on each weight has a scale per output channel and each activation one for the whole
# tensor. That is what hardware multiplies fastest.
#
# *Half-way. Stand up and look out of a window.*
#
# ## Scene 8. Weights or activations?
#
# From here on the signal is the network's answer, the predicted noise. Its SQNR says how far the
# quantized answer is from the exact one on the same input. Predict first.

# %%
table = ph.bits.mean_db(results.frames["powers"])
half = ph.verdicts.harder_half(ph.bits.db_of(table, 4, 8), ph.bits.db_of(table, 8, 4))
asked = question(8, half.key)
asked

# %%
asked.reveal(show.bits_map(table))

# %%
live = metrics.mean_sqnr_db(metrics.error_powers(states, w4a4.unet))
print(redo("SQNR at W4A4", ph.bits.db_of(table, 4, 4), live, tolerance=0.1, unit="dB"))
belief("Weights are the model: they need the bits.", half, refuted_by=["activations", "equal"])

# %% [markdown]
# Remember that each weight had a comb per channel, each activation one for all.
#
# ## Scene 9. When is the prediction worst?
#
# A mean over the run hides *when*. Same networks, same inputs, now step by step. Draw a guess on
# paper: step from left to right, SQNR upwards. A hint: rounding errs in proportion to what goes
# into the network, the whole $x_t$, and the answer is only the noise in it.

# %%
curves = ph.bits.per_seed(results.frames["powers"], [(8, 8), (4, 8), (4, 4)])
coarse = curves[curves["series"] == "W4A4"]
worst = ph.verdicts.worst_step(coarse, "W4A4")
asked = question(9, worst.key)
asked

# %%
medians = curves.groupby(["series", "step", "timestep"], as_index=False)["db"].median()
chart = charts.lines(
    medians,
    worst.words,
    x="step",
    y="db",
    steps=True,
    marks=True,
    axes=("", "SQNR of the answer [dB], up is better\nmedian of 8 seeds"),
    roles={"W8A8": "ablation_1", "W4A8": "ablation_2", "W4A4": "rtn"},
)
asked.reveal(chart)

# %%
belief("Pure noise is hardest.", worst, refuted_by=["last", "middle"])

# %% [markdown]
# ## Scene 10. Does a bad step ruin the picture?
#
# Quantize (W4A4) only step $k$, run all others exactly, and compare the final pictures.

# %%
single = results.frames["single"]
alone = ph.verdicts.single_steps(single, coarse, net)
asked = question(10, alone.key)
asked

# %%
chart = charts.lines(
    single.groupby(["step", "timestep"], as_index=False)["error"].mean().assign(series="rtn"),
    alone.words.split(". ")[0] + ".",
    x="step",
    y="error",
    steps=True,
    log=True,
    marks=True,
    axes=("", "error of the final picture (MSE)\nonly this step at W4A4, mean of 8 seeds"),
)
asked.reveal(chart)

# %% tags=["explorer"]
start_here.step_explorer(pictures[0, 0], ph.stored.to_pictures(results.tensors["single"]), single)

# %%
# The last step: no later one turns a rounding that falls the other way into another picture.
again = ph.steps.single_step(pipe, w4a4, states, [19])[19]
was = float(single.query("step == 19")["error"].mean())
now = float((again - images).square().mean())
print(redo("MSE after step 19 alone", was, now, tolerance=0.1))
belief("Where SQNR is low, the damage is done.", alone, refuted_by=["elsewhere"])

# %% [markdown]
# SQNR asks how wrong an answer is. The picture also asks what that answer decides: early flaws are
# magnified most (scene 3), and every later step builds on them. What comes out may be a clean but
# different picture; scene 14 tells worse from different.
#
# ## Scene 11. Fresh or inherited?
#
# In a real run an early error changes the input of every later step. *Fresh*: the quantized
# network on clean inputs. *Inherited*: the exact network on inputs that already went astray.
# *Both*: what really happens.

# %%
parts = results.frames["inheritance"]
origin = ph.verdicts.inheritance(ph.steps.overtaking_step(parts), last=19)
charts.lines(
    ph.steps.median_error(parts),
    origin.words,
    x="step",
    y="error",
    steps=True,
    log=True,
    axes=("", "error power over answer power\nW4A4, median of 8 seeds"),
    marks=True,
    roles={"fresh": "method", "inherited": "ablation_2", "both": "rtn"},
)

# %%
some = states[states.step == 10]
now = ph.steps.relative_error(w4a4.unet, some).mean()
was = parts.query("series == 'fresh' and step == 10")["error"].mean()
print(redo("Fresh error at step 10", was, now, tolerance=0.1))
belief("Repair the worst step and all is well.", origin, refuted_by=["early", "late"])

# %% [markdown]
# ## Scene 12. Why can one range not fit?
#
# The *range* of a tensor is what its comb must cover. Activations get one range for the whole run.
# A *site* is one tensor we watch; a *static* range is one range for all steps. Let $R$ be a site's
# largest range over the steps, divided by its smallest.

# %%
ranges = results.frames["ranges"]
ratios = ph.drift.drift(ranges)
moving = ph.verdicts.drifting(ratios, ph.drift.DRIFTING)
asked = question(12, moving.key)
asked

# %%
layers = ph.drift.layer_table(watched)
reach = ph.drift.shorten(ph.drift.reach(ranges, layers))
size = {"width": 590, "height": 392}
unit = "largest value, of the layer's own maximum [%]"
asked.reveal(show.layer_step_map(reach, value="percent", unit=unit, **size))

# %% tags=["explorer"]
inputs = [name for name in ratios.index if name.endswith(".input")]
start_here.range_explorer(ranges, [*inputs[:6], *inputs[-3:]])

# %%
now = ph.drift.range_table(watched, calibration[calibration.step == 19], [site])["high"].iloc[0]
was = ranges.query("site == @site and step == 19")["high"].iloc[0]
print(redo("Highest value of scene 5's tensor at step 19", was, now, tolerance=0.01))
belief("One calibration state is like any other.", moving, refuted_by=["many", "some"])

# %% [markdown]
# ## Scene 13. Which layers hurt?
#
# Round the input of one layer at a time to 4 bits and leave all else exact. Name three layers
# before you look.
#
# The map runs through the network from `conv_in`, top, to `conv_out`, bottom; the line on its left
# is the depth. *res* is a residual block with its two convolutions and *shortcut*, the one that
# fits its input to its output; *time* carries $t$ into it.

# %%
ends = results.frames["ends"].iloc[0]
few = ph.verdicts.end_layers(ends["ends"], ends["others"])
asked = question(13, {"holds": "two", "weaker": "equal", "opposite": "others"}[few.key])
asked

# %%
one_by_one = results.frames["layers"]
shown = ph.drift.shorten(one_by_one)
asked.reveal(show.layer_step_map(shown, value="db", unit="SQNR of the answer [dB]", **size))

# %%
layer = "mid_block.resnets.0.conv1"
some = states[states.seed < shipped.Plan().sensitive]
now = ph.layers.sensitivity(watched, some, ph.drift.static_ranges(ranges), [layer])["db"].mean()
was = one_by_one[one_by_one["layer"] == layer]["db"].mean()
print(redo(f"Mean SQNR, only {layer} at A4", was, now, tolerance=0.1, unit="dB"))
belief("Most parameters, most damage.", few, refuted_by=["holds", "weaker"])

# %% [markdown]
# That is why every comparison here keeps the first and last convolution at 8 bits.
#
# ## Scene 14. Worse, or only different?
#
# Two ways to judge. *Paired error*: same seed, is it the same picture? *Fréchet distance*: are the
# pictures, as a set, like real ones? It compares mean and covariance of a classifier's features.
# Down is better in both. Bars are 95 % intervals; two settings count as swapped only if their bars
# overlap in neither direction.
# <!-- numbers: 95 -->

# %%
judged = results.frames["quality"]
contrary = ph.quality.opposite_pairs(judged)
disagree = ph.verdicts.opposite_ranks(contrary, len(judged))
asked = question(14, disagree.key)
asked

# %%
chart = charts.points(
    judged.assign(setting=ph.quality.names(judged)),
    disagree.words,
    x="mse",
    y="frechet",
    axes=("paired squared error, median of 128 (log)", "Fréchet distance to 1,000 real pictures"),
    label="setting",
    highlight=contrary.iloc[:1, :2].to_numpy().ravel().tolist(),
    log=True,
)
asked.reveal(chart)

# %%
columns = {"mse": "{:.2e}".format, "frechet": "{:.1f}".format}
columns |= {"garment": "{:.0%}".format, "colour": "{:.0%}".format}
names = ["weights", "activations", *columns]
print(judged[names].to_string(index=False, formatters=columns))

# %% [markdown]
# The last two columns: share of pictures whose garment and colour read as at full precision.
# Guessing a garment would give one in ten.

# %%
features = results.tensors["features"].float()
now = metrics.frechet_distance(results.tensors["real"].float(), features[0])
print(redo("Fréchet distance at W8A8", judged["frechet"][0], now, tolerance=0.01))
belief("The distance fell, so it is better.", disagree, refuted_by=["disagree"])

# %%
answers = [ph.bits.db_of(table, *pair) for pair in ((4, 8), (8, 4))]
errors = [ph.quality.paired(judged, *pair) for pair in ((4, 8), (8, 4))]
belief(
    "Better answers, better pictures.",
    ph.verdicts.answers_or_pictures(answers, errors),
    refuted_by=["contrary"],
)

# %% [markdown]
# ## The map: five moments
#
# You have met the main reasons why methods exist; the table names the others. A method can act at
# five moments:
#
# 1. **calibrate**: see better data (scene 12);
# 2. **reshape**: rewrite the net so that its values are easier (scene 7);
# 3. **place**: choose formats and ranges (scenes 5, 6, 8, 12);
# 4. **fit**: learn parameters that suit the levels (no scene yet; scene 13 says where it counts);
# 5. **correct**: repair the error while sampling (scenes 9, 10, 11).
#
# Each later notebook opens with what the one before left over.

# %%
start_here.categories_table()

# %%
start_here.papers_table()

# %% [markdown]
# ## The gallery: whom you will meet
#
# The 27 papers worked on networks of different builds, and each build has its own trouble. So the
# later notebooks use a family of small models, trained on the same garments. Each is an ordinary
# diffusers folder that plays the part of a large one.

# %%
family = ph.stored.load("gallery")
start_here.gallery(family)

# %% [markdown]
# Video models show four frames of one clip. `sr-unet` got four real pictures at half their width.
# Here is what each was measured to be worth, as its model card tells at length; beside real
# pictures, because the classifier errs on those too.

# %%
start_here.gallery_table(family)

# %% [markdown]
# One of them live, with the first seeds of the row above:

# %%
again = samples.pictures("latent-unet", dqlab.load("latent-unet"))
was = ph.stored.to_pictures(family.tensors["latent-unet"])
print(redo("Mean value of latent-unet's pictures", was.mean(), again.mean(), tolerance=0.01))

# %% [markdown]
# ## Exercises
#
# Replace `raise NotImplementedError()`, run, then run the check below it. It says what is wrong,
# not what is right.

# %%
show.exercise(
    "Equal shares",
    "Write equal_shares(abar): the first t at which at most half of the power of "
    "x_t is picture. abar is a falling tensor, one value for each t.",
    minutes=5,
    difficulty=1,
    hints=[
        "abar itself is a share of power; its square root is an amplitude.",
        "(abar <= 0.5) gives True and False; which True comes first?",
    ],
)


# %% tags=["exercise"] exercise="equal-shares"
def equal_shares(abar):
    """First index at which at most half of the power is signal."""
    ### BEGIN SOLUTION
    return int((abar <= 0.5).nonzero()[0])
    ### END SOLUTION


# %% tags=["check"] exercise="equal-shares"
check = show.Check("equal shares")


@check.case("a straight line from 1 to 0 in 101 values crosses at 50", "Half of the power.")
def _(answer):
    return answer(torch.linspace(1, 0, 101)) == 50


@check.case(
    "the answer moves with the schedule",
    "At most half: 0.5 itself counts. And abar is a power, no amplitude.",
)
def _(answer):
    return answer(torch.tensor([0.9, 0.7, 0.51, 0.5, 0.3, 0.2, 0.1, 0.0])) == 3


check(equal_shares)


# %% tags=["mistake"] exercise="equal-shares" why="takes half of the time for half of the power"
def equal_shares(abar):
    return len(abar) // 2


# %% tags=["mistake"] exercise="equal-shares" why="takes the amplitude sqrt(abar) for the share"
def equal_shares(abar):
    return int((abar.sqrt() <= 0.5).nonzero()[0])


# %% [markdown] tags=["solution"]
# $\bar\alpha_t$ is a share of power because $x_t$ holds $\sqrt{\bar\alpha_t}\,x_0$ and power is
# the square.

# %%
show.exercise(
    "Fake quantization",
    "Write fake_quant(x, scale, zero_point, bits): round x to the nearest of "
    "the 2**bits levels and return values, not codes.",
    minutes=10,
    difficulty=2,
    hints=[
        "Codes first: round(x / scale) + zero_point, then clamp.",
        "The codes run from 0 to 2**bits - 1. Then go back: scale * (code - zero_point).",
    ],
)


# %% tags=["exercise"] exercise="fake-quant"
def fake_quant(x, scale, zero_point, bits):
    """x on the levels scale * (q - zero_point), q = 0 .. 2**bits - 1."""
    ### BEGIN SOLUTION
    codes = (x / scale).round() + zero_point
    return scale * (codes.clamp(0, 2**bits - 1) - zero_point)
    ### END SOLUTION


# %% tags=["check"] exercise="fake-quant"
check = show.Check("fake quantization")
line = torch.linspace(-3, 3, 601)


@check.case("2 bits have at most 4 different values", "What is the highest code?")
def _(answer):
    return len(answer(line, 0.5, 1, 2).unique()) <= 4


@check.case("3 bits agree with dqlab", "Off may be: the clamp, a sign, codes taken for values.")
def _(answer):
    ours = Affine(3).fake_quant(line, Range(torch.tensor(0.25), torch.tensor(3.0)))
    return torch.allclose(answer(line, 0.25, 3, 3), ours)


check(fake_quant)


# %% tags=["mistake"] exercise="fake-quant" why="the top code is 2^b: one level too many"
def fake_quant(x, scale, zero_point, bits):
    codes = (x / scale).round() + zero_point
    return scale * (codes.clamp(0, 2**bits) - zero_point)


# %% tags=["mistake"] exercise="fake-quant" why="does not clamp"
def fake_quant(x, scale, zero_point, bits):
    return scale * (x / scale).round()


# %% [markdown] tags=["solution"]
# The clamp is the whole price of few bits at the edges, the rounding the whole price inside.

# %%
show.exercise(
    "The best clip point",
    "Write best_clip(x, bits): the c among 60 points from max|x|/60 to "
    "max|x| with the least mean squared error of symmetric rounding to 2**bits levels on [-c, c].",
    minutes=15,
    difficulty=3,
    hints=[
        "Scale 2c / (2**bits - 1); codes from -(2**(bits-1)) to 2**(bits-1) - 1.",
        "Compute all 60 errors and take the smallest. It depends on bits.",
    ],
)


# %% tags=["exercise"] exercise="best-clip"
def best_clip(x, bits):
    """Clip point of least mean squared error."""

    ### BEGIN SOLUTION
    def error(c):
        scale = 2 * c / (2**bits - 1)
        codes = (x / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return float((codes * scale - x).square().mean())

    return min((x.abs().max() * i / 60 for i in range(1, 61)), key=error)
    ### END SOLUTION


# %% tags=["check"] exercise="best-clip"
check = show.Check("best clip point")
normal = torch.randn(20_000, generator=torch.Generator().manual_seed(1))


@check.case("at 3 bits it lies well inside the values", "The largest value is a costly guest.")
def _(answer):
    return 1.6 < float(answer(normal, 3)) < 2.6


@check.case("more bits afford a wider range", "One multiple for every b cannot be right.")
def _(answer):
    return float(answer(normal, 8)) > float(answer(normal, 4)) + 0.5


check(best_clip)


# %% tags=["mistake"] exercise="best-clip" why="keeps the largest value"
def best_clip(x, bits):
    return x.abs().max()


# %% tags=["mistake"] exercise="best-clip" why="three standard deviations, whatever the bits"
def best_clip(x, bits):
    return 3 * x.std()


# %% [markdown] tags=["solution"]
# Rounding error grows with $c^2$ and falls fourfold with each bit; clipping error only knows $c$.
# So the balance moves outwards as bits are added.

# %%
show.exercise(
    "Fresh and inherited",
    "Three answers of a network, as tensors: exact on the clean state, "
    "quantized on the clean state, exact on the drifted state. Write error_db(exact, rough, "
    "drifted): fresh and inherited error relative to the exact answer, both in dB (negative).",
    minutes=10,
    difficulty=3,
    hints=[
        "Fresh compares two networks on one input; inherited one network on two inputs.",
        "Powers are sums of squares; 10 log10 of a ratio of powers.",
    ],
)


# %% tags=["exercise"] exercise="fresh-inherited"
def error_db(exact, rough, drifted):
    """(fresh, inherited) error power over the power of `exact`, in dB."""

    ### BEGIN SOLUTION
    def db(other):
        return float(10 * ((other - exact).square().sum() / exact.square().sum()).log10())

    return db(rough), db(drifted)
    ### END SOLUTION


# %% tags=["check"] exercise="fresh-inherited"
check = show.Check("fresh and inherited")
unit = torch.ones(1000)


@check.case("a tenth of the amplitude is -20 dB", "10 log10 belongs to powers.")
def _(answer):
    return abs(answer(unit, 1.1 * unit, 1.1 * unit)[0] + 20) < 0.01


@check.case("fresh comes first", "Which of the two inputs is the drifted state's answer?")
def _(answer):
    fresh, inherited = answer(unit, 1.01 * unit, 1.1 * unit)
    return abs(fresh + 40) < 0.01 and abs(inherited + 20) < 0.01


check(error_db)


# %% tags=["mistake"] exercise="fresh-inherited" why="swaps the two states"
def error_db(exact, rough, drifted):
    def db(other):
        return float(10 * ((other - exact).square().sum() / exact.square().sum()).log10())

    return db(drifted), db(rough)


# %% tags=["mistake"] exercise="fresh-inherited" why="20 log10 of powers"
def error_db(exact, rough, drifted):
    def db(other):
        return float(20 * ((other - exact).square().sum() / exact.square().sum()).log10())

    return db(rough), db(drifted)


# %% [markdown] tags=["solution"]
# 20 log10 is for amplitudes. Used on powers it doubles every distance.
# <!-- numbers: 20 -->

# %%
show.exercise(
    "Five failures, five moments",
    "Which moment acts on each? A: ranges were read from finished "
    "pictures only. B: one tensor holds two populations. C: min-max at 4 bits. D: at W4A4 even "
    "the best ranges leave blurred pictures. E: each step's answer is off by the same small mean. "
    "Return a dict from the letters A to E to calibrate, reshape, place, fit or correct.",
    minutes=5,
    difficulty=2,
    hints=[
        "Each moment is used once.",
        "A mean that is known beforehand can be subtracted while sampling.",
    ],
)


# %% tags=["exercise"] exercise="moments"
def moment_of():
    """The moment for each of the failures A to E."""
    ### BEGIN SOLUTION
    return {"A": "calibrate", "B": "reshape", "C": "place", "D": "fit", "E": "correct"}
    ### END SOLUTION


# %% tags=["check"] exercise="moments"
check = show.Check("five moments")


@check.case("each moment is used once", "calibrate, reshape, place, fit, correct")
def _(answer):
    return sorted(answer().values()) == ["calibrate", "correct", "fit", "place", "reshape"]


@check.case("data and levels are right (A, C)", "Seeing other data is not choosing other levels.")
def _(answer):
    return [answer()[k] for k in "AC"] == ["calibrate", "place"]


@check.case("the rest is right (B, D, E)", "Splitting rewrites the net; training fits it.")
def _(answer):
    return [answer()[k] for k in "BDE"] == ["reshape", "fit", "correct"]


check(moment_of)


# %% tags=["mistake"] exercise="moments" why="takes better data for better levels"
def moment_of():
    return {"A": "place", "B": "reshape", "C": "calibrate", "D": "fit", "E": "correct"}


# %% tags=["mistake"] exercise="moments" why="trains where a mean could be subtracted"
def moment_of():
    return {"A": "calibrate", "B": "reshape", "C": "place", "D": "correct", "E": "fit"}


# %% [markdown] tags=["solution"]
# A range sees only the data it was given; levels are chosen for given data; the net is rewritten
# before either; what is left over is trained away or subtracted.

# %% [markdown]
# ## Recap
#
# The findings of this page, from the same numbers as its pictures:

# %%
for verdict in (ph.verdicts.granularity(gains), half, worst, alone, origin, moving, few, disagree):
    print("-", verdict)

# %% [markdown]
# Every value must land on one of $2^b$ levels. Who chose them, knowing what, and how much of that
# shows in the picture? Take these questions to the next notebook.
#
# ## References
#
# - J. Ho, A. Jain, P. Abbeel, *Denoising Diffusion Probabilistic Models*, 2020, arXiv 2006.11239.
# - J. Song, C. Meng, S. Ermon, *Denoising Diffusion Implicit Models*, 2021, arXiv 2010.02502.
# - M. Nagel and others, *A White Paper on Neural Network Quantization*, 2021, arXiv 2106.08295.
# - Q. Zeng and others, *Diffusion Model Quantization: A Review*, 2025, arXiv 2505.05215.
# - H. Xiao, K. Rasul, R. Vollgraf, *Fashion-MNIST*, 2017, arXiv 1708.07747.
