# %% [markdown]
# # 1.2 Two populations in one tensor
#
# A U-Net joins two tensors at every step of its way up: what it has just computed, and what it
# remembers from the way down. One convolution, the *shortcut*, reads both as they are. If one part
# is loud and the other quiet, a quantizer with one range serves the loud one.
#
# - **You will be able to** see two populations in a tensor and count the levels each is left with;
#   say from one ratio what splitting the range will gain; make a network hard to quantize
#   without changing what it computes; and judge each rung of a method by its own worth.
# - **Needs** `0-start-here`, scenes 5 to 8: levels, scale, dB, W4A8.
# - **Run time**: {{run time}}. Reading and playing take about 40 minutes.
# - **Papers**: Q-Diffusion (Li and others, ICCV 2023).
# <!-- numbers: 40 -->

# %% tags=["setup"]
import math

import torch

import dqlab
from dqlab import metrics, seeds, show
from dqlab import phenomena as ph
from dqlab.formats import Affine
from dqlab.methods.unet_shortcuts.q_diffusion import TEXT_SOFTMAX, paper_policy
from dqlab.phenomena import bimodal_shortcuts as measured
from dqlab.phenomena import q_diffusion_text as text
from dqlab.phenomena import shortcut_checks as checks
from dqlab.phenomena import shortcut_claims as claimed
from dqlab.phenomena.steps import chain_errors
from dqlab.phenomena.stored import redo
from dqlab.ranges import min_max
from dqlab.reference import q_diffusion

# %% tags=["setup"]
from dqlab.show import bimodal_shortcuts as explore
from dqlab.show import charts, tables
from dqlab.show import q_diffusion_text as explore_text
from dqlab.trajectory import record
from dqlab.trajectory.injected import relative_change

dqlab.setup()

# %% [markdown]
# The model is `pixel-unet`. Ranges are read on the states that Q-Diffusion chooses, every second
# step of 16 runs; results are told on runs that no range has seen. What takes minutes was measured
# beforehand and carries its origin.

# %%
pipe = dqlab.load("pixel-unet")
calibration = measured.calibration_states(pipe)
held_out, exact = record(pipe, seeds.HELD_OUT[:2])
results = ph.stored.load(measured.NAME)
results

# %% [markdown]
# ## 1. The phenomenon
#
# ### What a shortcut reads
#
# An up block receives `cat([hidden, skip])`. Its main path normalizes that first. Its shortcut, a
# 1×1 convolution, reads it raw. Both parts must share one comb of levels. Here is what each
# channel reaches over all calibration states, with the height of one step of that comb.

# %%
found = ph.shortcuts.shortcuts(pipe, calibration)
print(f"{len(found)} shortcuts; the third reads {found[2].sizes} channels.")
explore.skyline_of(found[2], factor=1)

# %% [markdown]
# The *decider* of this topic is one ratio, the range of the hidden part over that of the skip
# part: $\rho_X = \max|x_1| / \max|x_2|$. Far from 1, one part rules the range. $\rho_W$ is the
# same for the weights. The last column is measured behind norm and SiLU, where the block's 3×3
# convolution reads.

# %%
ratios = ph.shortcuts.ratio_table(found)
print(ratios.round(2).to_string(index=False))

# %%
natural = measured.imbalance(ratios)
natural

# %% [markdown]
# Do shortcuts stand out among layers, too? Here is how far the input of every layer reaches over a
# run.

# %%
drift = ph.stored.load("calibration-strategy").frames["drift"]
explore.layers_chart(drift)

# %% [markdown] tags=["quoted"]
# Q-Diffusion reports shortcuts whose range is up to about 200 times that of neighbouring layers,
# in a DDPM trained on CIFAR-10, and shows a step between both parts without a number (its
# figures; quoted). That network is deeper and was trained far longer than ours. Its residual
# stream is never normalized on the way, so it grows block by block.

# %% [markdown]
# ### One comb for both
#
# The same tensor in the quantizer's eyes: its values, and under them the comb that both parts
# share, at 4 bits, beside a comb for each part.

# %%
third = found[2]
fmt = Affine(4)
combs = {"one range for both": None, "hidden alone": "hidden", "skip alone": "skip"}
grids = {name: fmt.levels(third.input_range(fmt, part)) for name, part in combs.items()}
left = {part: ph.shortcuts.levels_on(third, part, 4) for part in ph.shortcuts.PARTS}
words = (
    f"of 16 shared levels {left['hidden']} lie in the hidden part, {left['skip']} in the skip part"
)
show.comb(third.sample[:, ::4], grids, sentence=f"{third.name}, natural: {words}.", height=300)

# %% [markdown]
# ### What rounding does to a run
#
# Few levels hurt twice in a sampler: an error made at one step is the input of the next. Weights
# alone are rounded here, to nearest, and each run starts from the noise of the exact one.

# %%
also = ph.stored.load(checks.NAME)
also

# %%
chain = also.frames["chain"]
growth = claimed.grows(chain)
charts.lines(
    chain,
    growth.words,
    x="step",
    y="error",
    log=True,
    axes=("sampler step", "squared error of the state\nmedian over 8 seeds"),
    roles={"W8": "ablation_1", "W5": "ablation_2", "W4": "rtn"},
)

# %% [markdown]
# Two of these seeds again, live, at 4 bits to nearest, half-way down the run:

# %%
run, _ = record(checks.rounded(pipe, 4, calibration[:1]), seeds.HELD_OUT[: checks.LIVE])
now, was = (c.set_index("step")["error"][10]
            for c in (chain_errors(held_out, {"W4": run}), also.frames["live"]))  # fmt: skip
print(redo("W4, squared error of the state, step 10", was, now, tolerance=0.05))

# %% [markdown]
# ### A network made harder, on purpose
#
# Small networks show this weakly. So we *inject* the imbalance: multiply the skip part by a power
# of two, $c$, just before it is joined, and divide the weights that read it by $c$. In full
# precision $c$ cancels. Predict what else happens at $c = 64$.
# <!-- numbers: 64 -->

# %%
sweep = measured.sweep_table(results.frames["sweep"])
effect = measured.injection(sweep, measured.STRONG)
asked = explore.question(effect.key)
asked

# %%
long = sweep.melt("factor", var_name="series", value_name="db").replace("unsplit", "one range")
long["doublings"] = long["factor"].map(math.log2)
chart = charts.lines(
    long,
    effect.words,
    x="doublings",
    y="db",
    marks=True,
    axes=(
        "doublings of the skip part, log2 c (injected)",
        "SQNR of the answer [dB], W8A8\nmean over steps, 8 seeds",
    ),
    roles={"one range": "rtn", "split": "method"},
)
asked.reveal(chart)

# %% [markdown]
# Is it the same function? Ask both networks the same questions in full precision, and then both
# quantized ones. `injected` does this check by itself and refuses where a norm's group holds
# channels of both parts.

# %%
hard = measured.imbalanced(pipe, measured.STRONG, calibration)
change = relative_change(pipe.unet, hard.unet, held_out)
print("same function to 1e-4:", change < 1e-4)

# %% tags=["method-q-diffusion"]
for split, name in ((False, "one range"), (True, "split")):
    w8a8 = measured.eight_bits(hard, 1, split, calibration)  # injected already
    now = metrics.mean_sqnr_db(metrics.error_powers(held_out, w8a8.unet))
    stored = claimed.of_sweep(results.frames["sweep"], measured.STRONG, split)
    was = metrics.mean_sqnr_db(stored[stored["seed"].isin(seeds.HELD_OUT[:2])])
    print(redo(f"W8A8, injected, {name}, two seeds", was, now, tolerance=0.2, unit="dB"))

# %% [markdown]
# Step by step, and layer by layer, natural and injected:

# %%
for factor in (1, measured.STRONG):
    print(claimed.better_steps(results.frames["sweep"], factor))
print(claimed.absorbed(found, 2 * measured.STRONG))

# %% [markdown]
# Now slide the injection along and watch the skyline, then the levels. The dashed line is one
# step of the comb: a channel that stays below half of it is rounded to zero throughout.

# %% tags=["explorer"]
explore.skyline_explorer(found)

# %% tags=["explorer"]
explore.comb_explorer(found)

# %% [markdown]
# ## 2. The method: Q-Diffusion
#
# *Picture.* Two parts, two combs. *Words.* Quantize each part before they are joined, and the
# weight's matching input channels too. *Equation*, with $X_1, W_1$ for the hidden
# and $X_2, W_2$ for the skip channels:
#
# $$Q_X(X)\,Q_W(W) = Q_{X_1}(X_1)\,Q_{W_1}(W_1) + Q_{X_2}(X_2)\,Q_{W_2}(W_2)$$
#
# Both sides as numbers, on our third shortcut at W8A8 with $c = 64$. The left side has one scale
# per tensor, the right side one per part.
# <!-- numbers: 64 -->

# %%
moved = third.scaled(64)
for split, side in ((False, "left, one range"), (True, "right, split")):
    print(f"{side}: {ph.shortcuts.output_db(moved, 8, 8, split):.1f} dB at the shortcut's output")

# %% [markdown]
# The paper does more than split. It calibrates on evenly spaced steps, searches for ranges that
# clip, and learns rounding and step sizes block by block. One call does all of it:
#
# ```python
# dqlab.quantize(pipe, "q-diffusion", weights=4, activations=8)
# ```
#
# and each part can be left out: `dqlab.recipe("q-diffusion", split=False, reconstruct=False)`.

# %%
show.source(q_diffusion.split_product)

# %% [markdown] tags=["quoted"]
# What the paper reports (quoted, not measured here): unconditional models with 4-bit weights whose
# FID changes by at most 2.34, where plain rounding loses more than 100; CIFAR-10 at W4A8 with an
# FID of 4.93. FID is lower for better sets of pictures and does not compare with our dB.

# %% [markdown]
# ### The same picture again, split and unsplit
#
# The same networks paint the same seeds at W8A8, natural and injected.

# %% tags=["explorer"]
explore.sweep_explorer(results)

# %% [markdown]
# ### What decides
#
# Suppose both parts matter equally for the output, and skip reaches $r = 1/\rho_X$ times as far.
# Shared, both combs are as coarse as the wider part asks. Splitting then gains
# $10\log_{10}\big((m^2 + (m/r)^2)/2\big)$ dB with $m = \max(1, r)$: nothing at $r = 1$, and 6 dB
# for every doubling far from it. The curve is measured on a made-up layer.
# <!-- numbers: 6 -->

# %%
curve = ph.shortcuts.synthetic_gain([2.0**k for k in range(-3, 9)])
for ratio, gain in curve.iloc[[3, 6, 9]].itertuples(index=False):
    told = ph.shortcuts.expected_gain_db(ratio)
    print(f"r = {ratio:g}: measured {gain:.1f} dB, the formula says {told:.1f} dB")

# %% tags=["explorer"]
explore.decider_explorer(curve, found)

# %% [markdown]
# Our own shortcuts lie at the flat end of the curve, where there is little to gain. Layer by
# layer, at the shortcut's own output:

# %% tags=["nbval-unit-db"]
gains = ph.shortcuts.split_gains(found, measured.LAYER_BITS)
gains["bits"] = "W" + gains["weights"].astype(str) + "A" + gains["activations"].astype(str)
print(gains.pivot(index="layer", columns="bits", values="gain").round(1).to_string())

# %% [markdown]
# ## 3. The ladder
#
# A method of many parts deserves a ladder: one thing more on each rung, all else equal. Same
# calibration states, same sites, first and last layer at 8 bits throughout. Rungs that learn take
# minutes, so all are stored; below, one cheap rung is climbed again.

# %% tags=["nbval-unit-db"]
ladder = measured.ladder_gains(results.frames["ladder"])
explore.ladder_table(ladder)

# %%
cheap = measured.rung(pipe, "min-max", 4, 8, calibration)
now = metrics.mean_sqnr_db(metrics.error_powers(held_out, cheap.unet))
stored = claimed.of_ladder(results.frames["ladder"], 4, 8, "min-max")
was = metrics.mean_sqnr_db(stored[stored["seed"].isin(seeds.HELD_OUT[:2])])
print(redo("W4A8, min-max, two seeds", was, now, tolerance=0.2, unit="dB"))

# %% tags=["explorer"]
explore.ladder_explorer(results)

# %% [markdown]
# Does the split still matter once rounding is learned? And does learning, done on states of full
# precision, still help late in a run, where the network meets states of its own making?

# %%
kept = [results.frames[name] for name in ("learned", "run")]
explore.claims_table(claimed.learned_claims(*kept))

# %% [markdown]
# ### The ledger
#
# The same rows close every notebook of this series. *Paired error* compares each picture with the
# one that full precision paints from the same seed. *Kept* counts pictures that a classifier
# still reads the same. Sizes and bit-operations are computed, not timed.

# %%
tables.ledger_table(results.frames["ledger"])

# %% [markdown]
# ## 4. The other half of the paper: which states, and what attention keeps
#
# Splitting is what Q-Diffusion is known for. Its other half is a calibration set, and a setting
# for Stable Diffusion. Both need a network that is guided by a caption, so the model is now
# `latent-unet`. Its stored results carry their own origin.

# %%
painter = dqlab.load(text.MODEL)
states = text.recorded(painter, text.small())
answers, _ = record(painter, seeds.HELD_OUT[: text.LIVE_SEEDS])
told = ph.stored.load(text.NAME)
told

# %% [markdown]
# ### Evenly spread, and both branches
#
# *Picture.* Stop at every second step of a run and write down what the network is asked. *Words.*
# Neighbouring steps look alike, so a few stand for all; distant ones do not. *Equation*: of $S$
# steps take $m$, with $n$ samples of each,
#
# $$t \in \{0,\ c,\ 2c,\ \dots,\ (m - 1)\,c\},\quad c = \lfloor S / m \rfloor$$
#
# With guidance a step asks twice, with the caption and without, so the set holds $2\,m\,n$ states.
# Here $m = 10$ and, of the runs recorded just now, $n = 4$; stored results have $n = 16$.
#
# ```python
# dqlab.recipe("q-diffusion", steps=10, samples=16)  # m and n
# ```

# %%
sets = text.sources(states)
for name in (text.EVEN, text.ONE_BRANCH, "last steps"):
    part = sets[name]
    print(f"{name}: {len(part)} states of steps {part.step.unique().tolist()}")

# %% [markdown]
# The same choice over a window of the run, over one branch, and with ranges that move on over the
# whole set (`running=True`, which the paper's script does for Stable Diffusion). A window is good
# at home and pays elsewhere, so look at the worst step too, not at the mean alone.

# %%
explore_text.source_chart(told.frames["sources"])

# %% tags=["nbval-unit-db"]
explore_text.source_page(told.frames["sources"])

# %%
print(text.windows_verdict(text.source_table(told.frames["sources"])))

# %% [markdown] tags=["quoted"]
# Q-Diffusion calibrates on the first, middle and last half of 100 steps, and evenly (CIFAR-10, 4
# bits, its figure; quoted): evenly is best, the middle the least bad window. More samples hardly
# help. Its bars are FIDs of finished pictures.

# %% [markdown]
# Pictures are the harder test, so here is `pixel-unet` again, judged by what it paints, with
# windows as narrow as a tenth of the run:

# %%
explore_text.window_page(also.frames)

# %%
live = text.calibrated_on(painter, "last steps", sets["last steps"])
now = metrics.mean_sqnr_db(metrics.error_powers(answers, live.unet))
was = metrics.mean_sqnr_db(told.frames["live"].query("setting == 'last steps'"))
print(redo("W8A8, last steps of four runs, two seeds", was, now, tolerance=0.2, unit="dB"))

# %% [markdown]
# ### What attention keeps
#
# Attention multiplies twice: queries with keys, then the softmax of that with values. All four
# operands are quantized, as inputs of layers are. One is special: the softmax output lies in
# $[0, 1]$, so its zero point is 0, and for Stable Diffusion the paper's script gives it 16 bits.
# A policy says so, and `quantize` takes it by name:
#
# ```python
# dqlab.quantize(pipe, "q-diffusion", weights=4, activations=8, policy="paper")
# ```
# <!-- numbers: 16 -->

# %%
print(paper_policy(TEXT_SOFTMAX))

# %% [markdown]
# Which operand suffers? Each alone, everything else in full precision:

# %% tags=["nbval-unit-db"]
explore_text.operand_page(told.frames["operands"])

# %%
for bits in (8, 4):
    print(text.costliest(text.operand_table(told.frames["operands"]), bits))

# %%
live = text.operand_alone(painter, "p", 4, sets[text.EVEN])
now = metrics.mean_sqnr_db(metrics.error_powers(answers, live.unet))
was = metrics.mean_sqnr_db(told.frames["live"].query("setting == 'softmax'"))
print(redo("softmax output alone at 4 bits, two seeds", was, now, tolerance=0.2, unit="dB"))

# %%
for weights in (8, 4):
    print(text.softmax_gain(told.frames["policies"], weights))

# %% [markdown]
# Inside the quantized network 8 softmax bits are enough here. What decides is keys per level:
# Stable Diffusion attends over 4096 positions, where the average probability lies below half of an
# 8-bit step and becomes 0. Here a position sees at most 64. `1.5` gives the lost mass back.
# <!-- numbers: 4096, 64 -->

# %% [markdown]
# ## 5. What reproduces here
#
# Every verdict is about the natural network; the injection only explains. A claim counts as
# reproduced from the margin in the fourth column on, if its interval is clear of zero.

# %%
stored = [results.frames[name] for name in ("ladder", "ledger")]
claims = claimed.towers(drift) | claimed.claims(ratios, gains, *stored)
claims |= claimed.learned_claims(*kept)
claims |= checks.of_units(checks.lines()) | checks.claims(also.frames)
claims |= text.claims(told.frames["sources"])
explore.claims_table(claims)

# %% [markdown]
# Where splitting gives nothing here, look at the decider: our ratios are small. A deeper network,
# or one trained longer, may move along that axis; the slider does.
#
# Not measured here: the symmetric levels of the paper's CIFAR-10 script, windows at 4 bits with
# reconstruction, and sets of pictures by FID. The
# released code sets a layer's activation range with the layers before it quantized; here that is
# `chained=True`, and `1.1` tells what it changes.
#
# ## Exercises
#
# Replace `raise NotImplementedError()`, run, then run the check below it.

# %%
show.exercise(
    "What a split gains",
    "x1 is narrow, x2 wide; both are tensors. Write split_gain_db(x1, x2, bits): by how many dB "
    "the SQNR of x1 rises when it gets a min-max range of its own in place of the one that both "
    "share.",
    minutes=15,
    difficulty=3,
    hints=[
        "Affine(bits).fake_quant(x1, r) rounds; min_max(x, Affine(bits)) gives a range r.",
        "Error powers are sums of squares; only the error of x1 counts.",
    ],
)


# %% tags=["exercise"] exercise="split-gain"
def split_gain_db(x1, x2, bits):
    """Gain in dB of the narrow part from a range of its own."""

    ### BEGIN SOLUTION
    def power(r):
        return (Affine(bits).fake_quant(x1, r) - x1).square().sum()

    both = torch.cat([x1.flatten(), x2.flatten()])
    shared, own = (power(min_max(x, Affine(bits))) for x in (both, x1))
    return float(10 * (shared / own).log10())
    ### END SOLUTION


# %% tags=["check"] exercise="split-gain"
check = show.Check("what a split gains")
narrow = torch.rand(20_000, generator=torch.Generator().manual_seed(1)) * 2 - 1


@check.case("100 times narrower gains 40 dB, give or take one", "20 log10 of 100; whose error?")
def _(answer):
    return abs(answer(narrow, 100 * narrow.flip(0), 8) - 40) < 1


@check.case("equally wide parts gain nothing", "Then both ranges are the same.")
def _(answer):
    return abs(answer(narrow, narrow.flip(0), 8)) < 0.1


check(split_gain_db)


# %% tags=["mistake"] exercise="split-gain" why="10 log10 of amplitudes: half the decibels"
def split_gain_db(x1, x2, bits):
    width = max(float(x2.max() - x2.min()), float(x1.max() - x1.min()))
    return float(10 * torch.tensor(width / float(x1.max() - x1.min())).log10())


# %% tags=["mistake"] exercise="split-gain" why="counts the error of both parts"
def split_gain_db(x1, x2, bits):
    def error(x, r):
        return (Affine(bits).fake_quant(x, r) - x).square().sum()

    both, fmt = torch.cat([x1, x2]), Affine(bits)
    own = error(x1, min_max(x1, fmt)) + error(x2, min_max(x2, fmt))
    return float(10 * (error(both, min_max(both, fmt)) / own).log10())


# %% [markdown] tags=["solution"]
# The step is proportional to the range and the error power to the step's square: 20 log10 of the
# ratio of ranges. The wide part's error does not change, so counting it hides the gain.
# <!-- numbers: 20 -->

# %%
show.exercise(
    "The same function, harder",
    "Write inject(skip, weight, c): the skip features [N, C] and the weights [C_out, C] that "
    "read them, changed so that skip has c times the range and the product is what it was.",
    minutes=5,
    difficulty=1,
    hints=["The product is skip @ weight.T.", "One is multiplied, the other divided."],
)


# %% tags=["exercise"] exercise="inject"
def inject(skip, weight, c):
    """(skip, weight) with the same product and c times the range of skip."""
    ### BEGIN SOLUTION
    return skip * c, weight / c
    ### END SOLUTION


# %% tags=["check"] exercise="inject"
check = show.Check("the same function")
generator = torch.Generator().manual_seed(2)
features, filters = torch.randn(32, 6, generator=generator), torch.randn(4, 6, generator=generator)


@check.case("the range of skip grows by c", "What is multiplied by c?")
def _(answer):
    made, _ = answer(features, filters, 64)
    return torch.equal(made, features * 64)


@check.case("the product stays, to the last bit", "c must cancel; a power of two does so exactly.")
def _(answer):
    made, weight = answer(features, filters, 64)
    return torch.allclose(made @ weight.T, features @ filters.T)


check(inject)


# %% tags=["mistake"] exercise="inject" why="scales both: the product grows by c squared"
def inject(skip, weight, c):
    return skip * c, weight * c


# %% tags=["mistake"] exercise="inject" why="leaves the weights: another function"
def inject(skip, weight, c):
    return skip * c, weight


# %% [markdown] tags=["solution"]
# Quantization comes between the two factors, and that is all it takes.

# %%
show.exercise(
    "Levels left over",
    "Two parts lie on [-narrow, narrow] and [-wide, wide] and share one comb of 2**bits levels. "
    "Write levels_left(narrow, wide, bits): how many levels fall on the narrow part, "
    "rounded down.",
    minutes=5,
    difficulty=2,
    hints=["2**bits levels are spread over the wide range.", "The share is a ratio of widths."],
)


# %% tags=["exercise"] exercise="levels-left"
def levels_left(narrow, wide, bits):
    """Levels of the shared comb within the narrow part."""
    ### BEGIN SOLUTION
    return int(2**bits * min(narrow / wide, 1))
    ### END SOLUTION


# %% tags=["check"] exercise="levels-left"
check = show.Check("levels left over")


@check.case("64 times narrower at 8 bits leaves 4", "Two bits are left, that is how many levels?")
def _(answer):
    return answer(1, 64, 8) == 4


@check.case("equal parts use every level", "Then the comb fits both.")
def _(answer):
    return answer(3.0, 3.0, 4) == 16


check(levels_left)


# %% tags=["mistake"] exercise="levels-left" why="counts bits, not levels"
def levels_left(narrow, wide, bits):
    return int(bits + torch.tensor(narrow / wide).log2())


# %% tags=["mistake"] exercise="levels-left" why="gives every part the whole comb"
def levels_left(narrow, wide, bits):
    return 2**bits


# %% [markdown] tags=["solution"]
# Every doubling of the ratio takes one bit from the narrow part.

# %%
show.exercise(
    "Does a group straddle?",
    "A GroupNorm with so many groups reads c1 hidden and c2 skip channels. Write "
    "straddles(c1, c2, groups): whether some group holds channels of both, so that scaling skip "
    "would change the function.",
    minutes=10,
    difficulty=3,
    hints=["A group has (c1 + c2) / groups channels.", "Where does the first part end?"],
)


# %% tags=["exercise"] exercise="straddle"
def straddles(c1, c2, groups):
    """Whether a norm group holds channels of both parts."""
    ### BEGIN SOLUTION
    return c1 % ((c1 + c2) // groups) != 0
    ### END SOLUTION


# %% tags=["check"] exercise="straddle"
check = show.Check("does a group straddle")


@check.case("96 + 48 channels in 6 groups of 24 do not", "Four groups end where hidden ends.")
def _(answer):
    return not answer(96, 48, 6)


@check.case("16 + 8 channels in 4 groups of 6 do", "Groups end at 6, 12, 18.")
def _(answer):
    return bool(answer(16, 8, 4))


@check.case("10 + 10 channels in 4 groups of 5 do not", "10 is the end of the second group.")
def _(answer):
    return not answer(10, 10, 4)


check(straddles)


# %% tags=["mistake"] exercise="straddle" why="asks whether groups divide the hidden channels"
def straddles(c1, c2, groups):
    return c1 % groups != 0


# %% tags=["mistake"] exercise="straddle" why="asks whether the parts are equally wide"
def straddles(c1, c2, groups):
    return c1 != c2


# %% [markdown] tags=["solution"]
# Within a group, mean and spread are taken over all of it. A part of a group that is scaled moves
# the rest.

# %%
show.exercise(
    "What a split costs",
    "Weights have a scale per output channel, inputs one per tensor. Write extra_scales(layers): "
    "how many scales more a network stores when each of these shortcuts is split in two. layers "
    "is a list of (input channels, output channels).",
    minutes=5,
    difficulty=2,
    hints=["Count for one layer: before, then after.", "Input channels do not matter."],
)


# %% tags=["exercise"] exercise="cost"
def extra_scales(layers):
    """Scales added by splitting every layer in two."""
    ### BEGIN SOLUTION
    return sum(outputs + 1 for _, outputs in layers)
    ### END SOLUTION


# %% tags=["check"] exercise="cost"
check = show.Check("what a split costs")


@check.case("one layer of 96 outputs: 97 more", "The input has a scale as well.")
def _(answer):
    return answer([(192, 96)]) == 97


@check.case("layers add up", "Each layer brings its own.")
def _(answer):
    return answer([(192, 96), (72, 24), (48, 24)]) == 147


check(extra_scales)


# %% tags=["mistake"] exercise="cost" why="forgets the input's scale"
def extra_scales(layers):
    return sum(outputs for _, outputs in layers)


# %% tags=["mistake"] exercise="cost" why="takes a scale per input channel"
def extra_scales(layers):
    return sum(inputs + 1 for inputs, _ in layers)


# %% [markdown] tags=["solution"]
# A few hundred numbers in a network of over a million weights: a split is cheap to store. To
# compute, it is two products with scales of their own, added afterwards.
#
# ## Recap

# %%
for verdict in (growth, natural, effect):
    print("-", verdict)
for claim in claims.values():
    print(f"- {claim.says}: {claim.outcome}")

# %% [markdown]
# Every value must land on one of $2^b$ levels. Where one tensor holds two populations, give each
# its own. What is left over: even then each part has one range for all sampling steps. That is
# the topic of `1.3`.
#
# ## References
#
# - X. Li and others, *Q-Diffusion: Quantizing Diffusion Models*, ICCV 2023, arXiv 2302.04304.
# - Y. Li and others, *BRECQ: Pushing the Limit of Post-Training Quantization by Block
#   Reconstruction*, ICLR 2021, arXiv 2102.05426.
# - Y. Wu and K. He, *Group Normalization*, ECCV 2018, arXiv 1803.08494.
