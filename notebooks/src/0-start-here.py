# %% [markdown]
# # Start here: what few bits do to a diffusion model
#
# A diffusion model paints by asking one neural network the same question many times: how much of
# this is noise? Quantization lets that network work with few bits. This notebook shows, in
# fourteen scenes, what breaks, where, and why. Each scene is one question, one picture, one thing
# to do, one computed number, and one belief that turns out wrong.
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
from dqlab.formats import Affine, Range
from dqlab.phenomena import (
    bits,
    chain,
    drift,
    layers,
    levels,
    quality,
    schedule,
    steps,
    stored,
    verdicts,
)
from dqlab.phenomena import start_here as shipped
from dqlab.show import charts, start_here
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
# What takes longer than a minute was measured beforehand and ships with its origin. In every
# scene one stored number is computed again; if it has moved, the cell stops with an error.

# %%
results = stored.load("start-here")
results

# %% [markdown]
# ## Scene 1. What do 4 bits do to a picture?
#
# `quantize` with the recipe `rtn`, plain rounding to nearest, makes a copy whose weights (W) and
# activations (A) take only 16 values each. To choose those values it looks at 32 calibration
# runs. The first and last layer keep 8 bits.
# <!-- numbers: 32 -->

# %%
calibration, _ = record(pipe, seeds.CALIBRATION[:32])

# %%
w4a4 = dqlab.quantize(pipe, "rtn", weights=4, activations=4, calibration=calibration)
pictures = shipped.pictures(results)
rounded = (images * 15).round() / 15
rows = {"full_precision": images, "picture in 4 bits": rounded, "rtn": pictures[4, 4]}
show.image_grid(rows, roles={"picture in 4 bits": "ablation_1"}, value_range=(0, 1))

# %%
net = float((pictures[4, 4] - images).square().mean())
verdicts.picture_or_net(net, float((rounded - images).square().mean()))

# %% [markdown]
# Row 2 stores the *finished picture* with 16 values per colour. Row 3 lets the *network* compute
# with 16 values, twenty times in a row. Move the bits.

# %% tags=["explorer"]
start_here.bits_explorer(pictures, shipped.BITS)

# %% [markdown]
# > **"Fewer bits mean fewer colours."** No: they mean another computation. Its error is fed back
# > into the network at every step.
#
# ## Scene 2. How is a picture destroyed?
#
# Training mixes a picture $x_0$ with noise. At time $t$ the mixture is
# $x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$. So $\bar\alpha_t$
# (`signal` below) is the share of power that is still picture. Time $t$ counts from 0, clean, to
# 999, noise only. We always draw it from noise on the left to picture on the right.
# <!-- numbers: 999 -->

# %%
crossing = schedule.equal_shares(pipe.scheduler)
options = {"A": 258, "B": 500, "C": 750}
question = show.Question(
    "At which t do picture and noise have equal power?",
    {key: f"near t = {t}" for key, t in options.items()},
    min(options, key=lambda key: abs(options[key] - crossing)),
    {
        "A": "Noise grows quickly at first: shares are squares, and the schedule speeds up.",
        "B": "Tempting, since it is half-way in t; but t is a label, not a share.",
        "C": "Tempting, since pictures stay readable under much noise.",
    },
)
question

# %%
share = schedule.shares(pipe.scheduler)
long = share.melt("t", var_name="series", value_name="share")
half = share["signal"][500]
words = f"Equal shares at t = {crossing}; at t = 500 only {100 * half:.1f} % are picture."
chart = charts.lines(
    long.iloc[::10], words, x="t", y="share", falling=True, at=(crossing, "equal shares"),
    axes=("t (noise → picture)", "share of power"),
    roles={"signal": "full_precision", "noise": "rtn"},
)
question.reveal(chart)

# %%
times = [999, 749, 499, 249, 99, 0]
mixed = schedule.noised(images[0] * 2 - 1, times, pipe.scheduler)
heads = [f"t = {t}\n{share['signal'][t]:.0%} picture" for t in times]
words = "One picture of the model, mixed with more and more of the same noise to the left."
charts.picture_rows({"x_t": mixed}, heads, words, roles={"x_t": "full_precision"})

# %% [markdown]
# > **"At t = 500 half of the picture is left."** The number above says otherwise.
# <!-- numbers: 500 -->
#
# ## Scene 3. What does the network answer?
#
# It sees $x_t$ and $t$ and predicts the noise $\varepsilon$. Subtract that noise and you have its
# guess of the finished picture. From pure noise the guess is a blur: the average of all that is
# still possible.

# %%
picked = [0, 4, 8, 12, 16, 19]
one = states[states.seed == 0]
implied = schedule.implied_image(one, pipe.scheduler)
heads = [f"step {k}\nt = {int(one.t[k])}" for k in picked]
rows = {"input x_t": one.x[picked] / 2, "noise (predicted)": one.output[picked] / 3}
rows["implied picture"] = implied[picked]
words = "The same question at six steps: input, predicted noise, and the picture it implies."
charts.picture_rows(rows, heads, words, roles={"implied picture": "method"})

# %%
guess = chain.mean_error(chain.implied_error(states, images, pipe.scheduler))
first, middle = guess["error"].iloc[[0, 10]]
charts.lines(
    guess.assign(series="implied picture"), x="step", y="error", steps=True, log=True, marks=True,
    sentence=f"The first guess is off by {first:.2g} on average, the eleventh by {middle:.2g}.",
    axes=("", "mean squared error to the finished picture"), roles={"implied picture": "method"},
)

# %% [markdown]
# > **"The network paints the image in one call."** One call gives the average of many pictures.
#
# ## Scene 4. How does noise become a garment?
#
# The sampler takes a small step towards the guess, asks again, and so on. A classifier names
# garment, colour and background of each guess; we ask from which step on the name stays.

# %%
settled = chain.settle_steps(states, pipe.scheduler)
verdicts.settled(settled, total=20)

# %% tags=["explorer"]
start_here.seed_explorer(states, pipe.scheduler, settled)

# %% [markdown]
# > **"Every step paints equally much."** Decisions fall early, details late. Remember this when a
# > rough step comes early.
#
# ## Scene 5. What is a level?
#
# Here are real numbers: the input of the attention layer in the middle of the U-Net. Rounding
# moves each to the nearest of $2^b$ levels: $\hat x = s\,(q - z)$ with an integer code
# $q = \mathrm{round}(x/s) + z$, clamped to $0 \dots 2^b-1$. The *scale* $s$ is the distance of
# two levels; the *zero point* $z$ is the code of 0.

# %% tags=["explorer"]
site = "mid_block.attentions.0.to_q.input"
watched = drift.watchable(pipe, states)
values = drift.values_at(watched, states[states.step == 10], site)
start_here.levels_explorer(values)

# %%
facts = {b: levels.rounding_error(values, *levels.fitted(values, b)) for b in (2, 3, 4, 6, 8)}
for b, fact in facts.items():
    print(f"{b} bits: scale {fact['scale']:.3g}, SQNR {fact['sqnr_db']:.1f} dB;",
          verdicts.rounding(fact))

# %% [markdown]
# SQNR, the *signal-to-quantization-noise ratio*, is $10\log_{10}$ of signal power over error
# power. 10 dB: the error has a tenth of the power. 20 dB: a hundredth. Each further bit halves
# $s$ and gains about 6 dB. Up is better.
# <!-- numbers: 10, 20, 6 -->
#
# > **"Large values get large errors."** Inside the comb all values get the same: at most half a
# > step.
#
# ## Scene 6. Is clipping a mistake?
#
# Min-max gives every value a level, the most extreme one too. That makes $s$ large. The other
# choice is to cut: smaller steps for the many, a large error for the few.

# %%
gauss = levels.gaussian()
curve = levels.clip_curve(gauss, 4, (*start_here.CLIPS, float(gauss.abs().max())))
loss = levels.min_max_loss(curve)
costs = {"A": 0, "B": 1, "C": 5}
question = show.Question(
    "4 bits for 100,000 Gaussian numbers: what does min-max lose against the best clip point?",
    {"A": "nothing, it is safe", "B": "about 1 dB", "C": "about 5 dB"},
    min(costs, key=lambda key: abs(costs[key] - loss["loss_db"])),
    {
        "A": "Tempting: nothing is cut off. But the steps grow with the most extreme value.",
        "B": "That is the order of the loss at 6 bits and more.",
        "C": "Sixteen levels over more than eight standard deviations are few.",
    },
)
question

# %% tags=["explorer"]
start_here.clip_explorer(gauss)

# %%
verdicts.clipping(loss, 4)

# %% [markdown]
# > **"Min-max is safe."** It is safe for the one largest value.
#
# ## Scene 7. One comb for whom?
#
# A weight matrix has one row per output channel. One scale for all must reach the largest weight
# anywhere; a scale per row fits each row. Switch, and watch the error on the right.

# %% tags=["explorer"]
weights = dict(levels.weights_of(pipe.unet))
start_here.granularity_explorer(weights["up_blocks.0.resnets.0.conv_shortcut"], 4)

# %%
gains = levels.granularity(weights.items(), 4)
verdicts.granularity(gains)

# %% [markdown]
# > **"Bits alone set the error."** Same bits, other combs, other error. From here on every weight
# > has a scale per output channel and every activation one per tensor: the hardware's habit.
#
# *Half-way. Stand up, look out of a window.*
#
# ## Scene 8. Weights or activations?
#
# From here on the signal is the network's answer, the predicted noise. Its SQNR tells how far
# the quantized network's answer is from the exact one, on the same input.

# %%
table = bits.mean_db(results.frames["powers"])
half = verdicts.harder_half(bits.db_of(table, 4, 8), bits.db_of(table, 8, 4))
question = show.Question(
    "Which hurts more: weights at 4 bits (W4A8) or activations at 4 bits (W8A4)?",
    {"weights": "W4A8", "activations": "W8A4", "equal": "they differ by less than 1 dB"},
    half.key,
    {
        "weights": "Tempting: the weights are the model. But each row has a scale of its own.",
        "activations": "One scale serves all channels, all pictures and all steps.",
        "equal": "Tempting: both have sixteen levels.",
    },
)
question

# %%
question.reveal(show.bits_map(table))

# %%
live = metrics.mean_sqnr_db(metrics.error_powers(states, w4a4.unet))
print(half)
stored.redo("SQNR at W4A4", bits.db_of(table, 4, 4), live, tolerance=0.1, unit="dB")

# %% [markdown]
# > **"Weights are the model, so they need the bits."** With a comb per channel they forgive more.
#
# ## Scene 9. When is the prediction worst?
#
# One mean over 20 steps hides when. Same networks, same inputs, now step by step.
# <!-- numbers: 20 -->

# %%
pairs = [(8, 8), (4, 8), (4, 4)]
curves = bits.per_seed(results.frames["powers"], pairs)
worst = verdicts.worst_step(curves[curves["series"] == "W4A4"], "W4A4")
question = show.Question(
    "At W4A4, where along the run is the answer worst?",
    {"first": "near pure noise", "middle": "half-way", "last": "near the finished picture"},
    worst.key,
    {
        "first": "Tempting: nothing can be seen there. But the answer is then close to the input.",
        "middle": "Tempting: that is where shapes form.",
        "last": "The noise left is faint, so a rounding error of equal size weighs more.",
    },
)
question

# %%
roles = {"W8A8": "full_precision", "W4A8": "method", "W4A4": "rtn"}
question.reveal(show.db_over_steps(curves, roles=roles, condition="8 seeds, median and quartiles"))

# %%
worst

# %% [markdown]
# > **"Pure noise is hardest."** For a person. The network's own answer there is the easy part.
#
# ## Scene 10. Does a bad step ruin the picture?
#
# Now quantize (W4A4) only step $k$ and run all others exactly. Does the picture suffer most from
# the step with the lowest SQNR?

# %%
single = results.frames["single"]
w4a4_curve = curves[curves["series"] == "W4A4"]
alone = verdicts.single_steps(single, w4a4_curve, net)
question = show.Question(
    "Is the step of lowest SQNR also the one that does the most damage?",
    {"same": "yes, roughly", "elsewhere": "no, another part of the run"},
    alone.key,
    {
        "same": "Tempting: a wrong answer should hurt where it is most wrong.",
        "elsewhere": "A step's weight matters too: the sampler moves far early, little late.",
    },
)
question

# %%
chart = show.error_curves(
    single.assign(series="rtn"), unit="error of the final picture, one step quantized",
    condition="W4A4, 8 seeds",
)
question.reveal(chart)

# %% tags=["explorer"]
start_here.step_explorer(pictures[0, 0], stored.to_pictures(results.tensors["single"]), single)

# %%
again = steps.single_step(pipe, w4a4, states, [15])[15]
was = float(single.query("step == 15")["error"].mean())
now = float((again - images).square().mean())
print(alone)
stored.redo("Error after step 15 alone", was, now, tolerance=0.1)

# %% [markdown]
# > **"Low SQNR there, so the damage comes from there."** SQNR asks how wrong the answer is. The
# > picture also asks what the sampler does with it.
#
# ## Scene 11. Fresh or inherited?
#
# In a real run an early error changes the input of every later step. *Fresh*: the quantized
# network on clean inputs. *Inherited*: the exact network on inputs that already went astray.
# *Both*: what really happens.

# %%
parts = results.frames["inheritance"].query("error > 0")
roles = {"fresh": "method", "inherited": "ablation_2", "both": "rtn"}
show.error_curves(parts, roles=roles, unit="error of the answer, relative to its power")

# %%
step = steps.overtaking_step(results.frames["inheritance"])
verdicts.inheritance(step, last=19)

# %% [markdown]
# > **"Repair the worst step and all is well."** Ask first whether its error was its own.
#
# ## Scene 12. Why can one range not fit?
#
# Activations get one range for all 20 steps. Watch what each layer really uses: $R$ is its
# largest range over the steps, divided by its smallest.
# <!-- numbers: 20 -->

# %%
ranges = results.frames["ranges"]
ratios = drift.drift(ranges)
moving = verdicts.drifting(ratios, drift.DRIFTING)
moving

# %% tags=["explorer"]
start_here.range_explorer(ranges, [*ratios.index[:6], *ratios.index[-3:]])

# %%
branches = drift.layer_table(watched)
show.layer_step_map(drift.reach(ranges, branches), value="share", unit="share of its maximum")

# %%
now = drift.range_table(watched, calibration[calibration.step == 19], [site])["high"].iloc[0]
was = ranges.query("site == @site and step == 19")["high"].iloc[0]
stored.redo("Highest value of scene 5's tensor at step 19", was, now, tolerance=0.01)

# %% [markdown]
# > **"One calibration image is like any other."** A range read at one step can be far off at
# > another.
#
# ## Scene 13. Which layers hurt?
#
# Round the input of one layer at a time to 4 bits and leave all else exact. Before you look, name
# three layers.

# %%
ends = results.frames["ends"].iloc[0]
few = verdicts.end_layers(ends["ends"], ends["others"])
question = show.Question(
    "Which is worse at 4 bits: the first and last convolution, or all other layers together?",
    {"holds": "the two", "weaker": "they differ by less than 1 dB", "opposite": "all others"},
    few.key,
    {
        "holds": "One reads the picture, one writes the answer: no detour around them.",
        "weaker": "Two layers against more than sixty, and yet a draw.",
        "opposite": "Tempting: they hold nearly all parameters.",
    },
)
question

# %%
one_by_one = results.frames["layers"]
question.reveal(show.layer_step_map(one_by_one, value="db"))

# %%
layer = "mid_block.resnets.0.conv1"
bounds = drift.static_ranges(ranges)
now = layers.sensitivity(watched, states[states.seed < 4], bounds, [layer])["db"].mean()
was = one_by_one[one_by_one["layer"] == layer]["db"].mean()
print(few)
stored.redo(f"Mean SQNR with {layer} at A4", was, now, tolerance=0.1, unit="dB")

# %% [markdown]
# > **"Most parameters, most damage."** Position counts. This is why every comparison here keeps
# > the first and last convolution at 8 bits.
#
# ## Scene 14. Worse, or only different?
#
# Two ways to judge. *Paired error*: same seed, is it the same picture? *Fréchet distance*: are the
# pictures as a set like real ones? It compares mean and covariance of a classifier's features.

# %%
judged = results.frames["quality"]
contrary = quality.opposite_pairs(judged)
disagree = verdicts.opposite_ranks(contrary, len(judged))
question = show.Question(
    "Do both measures rank the settings alike?",
    {"agree": "yes", "disagree": "no, some pairs swap"},
    disagree.key,
    {
        "agree": "Tempting: less error, better pictures.",
        "disagree": "Another picture can be as good a picture.",
    },
)
question

# %%
named = [f"W{w}A{a}" for w, a in judged[["weights", "activations"]].to_numpy()]
swapped = set(contrary[["closer", "lower"]].iloc[0]) if len(contrary) else ()
chart = charts.points(
    judged.assign(setting=named), disagree.words, x="mse", y="frechet", label="setting",
    axes=("paired squared error, median of 128", "Fréchet distance to 1,000 real pictures"),
    highlight=swapped, log=True,
)
question.reveal(chart)

# %%
columns = {"mse": "{:.4f}".format, "frechet": "{:.2f}".format}
columns |= {"garment": "{:.0%}".format, "colour": "{:.0%}".format}
print(judged.to_string(index=False, formatters=columns))

# %%
features = results.tensors["features"].float()
now = metrics.frechet_distance(results.tensors["real"].float(), features[0])
stored.redo("Fréchet distance at W8A8", judged["frechet"][0], now, tolerance=0.01)

# %% [markdown]
# > **"The distance fell, so it is better."** Better as a set, perhaps. Not necessarily the picture
# > that full precision would have made.

# %% [markdown]
# ## The map: five moments
#
# You have now met every reason why a method exists. A method can act at five moments:
#
# 1. **calibrate**: see better data (scene 12);
# 2. **reshape**: rewrite the net so that its values are easier (scene 7);
# 3. **place**: choose formats and ranges (scenes 5, 6, 8, 12);
# 4. **fit**: learn parameters that suit the levels (scene 13);
# 5. **correct**: repair the error while sampling (scenes 9, 10, 11).
#
# Each later notebook opens with what the one before left over.

# %%
start_here.categories_table()

# %%
start_here.papers_table()

# %% [markdown]
# ## Exercises
#
# Replace `raise NotImplementedError()`, run, then run the check below it. It says what is wrong,
# not what is right.

# %%
show.exercise(
    "Equal shares", "Write equal_shares(abar): the first t at which at most half of the power of "
    "x_t is picture. abar is a falling tensor, one value for each t.",
    minutes=5, difficulty=1,
    hints=["abar itself is a share of power; its square root is an amplitude.",
           "(abar <= 0.5) gives True and False; which True comes first?"],
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

@check.case("the answer moves with the schedule", "Powers, not amplitudes; and not half of T.")
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
    "Fake quantization", "Write fake_quant(x, scale, zero_point, bits): round x to the nearest of "
    "the 2**bits levels and return values, not codes.",
    minutes=10, difficulty=2,
    hints=["Codes first: round(x / scale) + zero_point, then clamp.",
           "The codes run from 0 to 2**bits - 1. Then go back: scale * (code - zero_point)."],
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

def ours(scale, zero_point, bits):
    r = Range(torch.tensor(scale), torch.tensor(float(zero_point)))
    return Affine(bits).fake_quant(line, r)

@check.case("2 bits have at most 4 different values", "What is the highest code?")
def _(answer):
    return len(answer(line, 0.5, 1, 2).unique()) <= 4

@check.case("it agrees with dqlab for 3 and 4 bits", "Values beyond the last level move onto it.")
def _(answer):
    return all(torch.allclose(answer(line, *r), ours(*r)) for r in [(0.25, 3, 3), (0.25, 8, 4)])

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
    "The best clip point", "Write best_clip(x, bits): the c among 60 points from max|x|/60 to "
    "max|x| with the least mean squared error of symmetric rounding to 2**bits levels on [-c, c].",
    minutes=15, difficulty=3,
    hints=["Scale 2c / (2**bits - 1); codes from -(2**(bits-1)) to 2**(bits-1) - 1.",
           "Compute all 60 errors and take the smallest. It depends on bits."],
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
    "Fresh and inherited", "Three answers of a network, as tensors: exact on the clean state, "
    "quantized on the clean state, exact on the drifted state. Write error_db(exact, rough, "
    "drifted): fresh and inherited error relative to the exact answer, both in dB (negative).",
    minutes=10, difficulty=3,
    hints=["Fresh compares two networks on one input; inherited one network on two inputs.",
           "Powers are sums of squares; 10 log10 of a ratio of powers."],
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
    "Five failures, five moments", "Which moment acts on each? A: ranges were read from finished "
    "pictures only. B: one tensor holds two populations. C: min-max at 4 bits. D: at W4A4 even "
    "the best ranges leave blurred pictures. E: each step's answer is off by the same small mean.",
    minutes=5, difficulty=2,
    hints=["Each moment is used once.",
           "A mean that is known beforehand can be subtracted while sampling."],
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
for verdict in (verdicts.granularity(gains), half, worst, alone, moving, few, disagree):
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
