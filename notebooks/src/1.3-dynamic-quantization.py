# %% [markdown]
# # 1.3 A range that moves
#
# The network is the same at every sampler step. What passes through it is not: noise comes in at
# the first step, and a garment at the last. A layer's values may grow or shrink on the way. One
# scale for the whole run then clips at one end and wastes levels at the other.
#
# - **You will be able to** see a range march over time and say whether time or the picture moves
#   it; tell from one ratio what a range per step will gain; fit a network that turns a timestep
#   into a scale; and weigh accuracy against what finding a range costs.
# - **Needs** `0-start-here`, scenes 5 to 12: levels, clipping, dB, ranges over steps.
# - **Run time**: {{run time}}. Reading and playing take about 40 minutes.
# - **Papers**: TDQ (So and others, NeurIPS 2023).
# <!-- numbers: 40 -->

# %% tags=["setup"]
import torch

import dqlab
from dqlab import metrics, seeds, show
from dqlab import phenomena as ph
from dqlab.methods.step_networks import fit_networks
from dqlab.methods.unet_dynamic.tdq import Grid
from dqlab.phenomena import dynamic_quantization as measured
from dqlab.phenomena import run_time_ranges as timing
from dqlab.phenomena import timed_ranges as timed
from dqlab.phenomena import timed_verdicts as told
from dqlab.phenomena.stored import redo
from dqlab.ranges import shrink_search
from dqlab.reference import tdq as paper
from dqlab.show import dynamic_quantization as explore
from dqlab.show import timed_ranges as draw
from dqlab.trajectory import record

dqlab.setup()

# %% [markdown]
# The model is `pixel-unet`. Scales are set on six runs and judged on runs that set nothing.
# What takes minutes was measured beforehand and carries its origin.

# %%
pipe = dqlab.load("pixel-unet")
calibration = measured.calibration_states(pipe)
held_out, _ = record(pipe, seeds.HELD_OUT[:2])
results = ph.stored.load(measured.NAME)
results

# %% [markdown]
# ## 1. The phenomenon
#
# ### Ridges over time
#
# We watch the input of every layer and every operand of attention, at all sampler steps, with
# nothing quantized. Each ridge is a histogram on its side. The band is what 4 bits can reach with
# one scale taken from the largest value of the whole run.

# %%
seen = timed.watch(pipe, calibration)
drift = timed.time_table(seen).sort_values("R", ascending=False)
site = drift["site"].iloc[0]
explore.ridges_of(seen, site, "min-max")

# %% [markdown]
# The *decider* of this topic is the drift of a site: $R = \max_t A(t) / \min_t A(t)$, with
# $A(t)$ the largest absolute value at a step. Next to it, $r$ is the correlation with $t$ of that
# value's mean over samples. The last two columns are its variance between steps, and between the
# samples of one step.

# %%
print(drift.drop(columns=["site", "branch"]).head(8).round(2).to_string(index=False))

# %% [markdown]
# ### Time, or the picture?
#
# If $A$ varied as much between samples as between steps, a timestep would not tell the range.

# %%
natural = told.drifts(drift)
natural

# %% [markdown]
# The same in a latent model, which never sees a pixel. Here are all sites of both.

# %%
latent = dqlab.load("latent-unet")
states, _ = record(latent, seeds.CALIBRATION[:2])
other = timed.time_table(timed.watch(latent, states))
draw.drift_points({"pixel-unet": drift, "latent-unet": other})

# %% [markdown] tags=["quoted"]
# TDQ reports that 62.1 % of the layers of its pixel model have $|r| > 0.5$ and 38.8 % have
# $|r| > 0.7$. About 30 % hardly depend on time: their range follows the picture. Latent models
# show less. (Quoted as a public summary of the paper tells them, like all of its figures here:
# its text was not at hand. Which statistic of a layer its $r$ is about is not told there; ours is
# the largest absolute value. $R$ is ours, too.)

# %% [markdown]
# ### What one scale costs
#
# An error has two parts: *clipping* of values beyond the last level, and *rounding* of the rest.
# Take the scale of least squared error over the whole run. It clips where the tensor is wide
# and rounds coarsely where it is narrow.

# %%
draw.errors_of(seen, site)

# %% [markdown]
# So a range for every step should help. Predict how much.

# %%
gains = results.frames["gains"]
answer = told.table_gain(gains)
asked = explore.question(answer.key)
asked

# %%
curve = timed.gaussian_gains([1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0])
asked.reveal(explore.decider_of(curve, gains, "static"))

# %%
answer

# %% [markdown]
# The curve is a made-up site: Gaussian, its width growing geometrically over the run. At $R = 8$
# a table gains about as much as half a bit more would. A norm in front of most layers keeps ours
# away from that.
#
# Now choose a site, a scale for all steps, and bits. Then look at one step alone.
# <!-- numbers: 8 -->

# %% tags=["explorer"]
explore.ridge_explorer(seen)

# %% tags=["explorer"]
explore.comb_explorer(seen)

# %% [markdown]
# ## 2. The method: TDQ
#
# *Picture.* The band becomes a ribbon that follows the ridges. *Words.* Time explains much of the
# range, and time is known before the layer runs. So let a small network turn the timestep into
# the scale, fit it once, and keep its answers as a table. *Equation*, with $e(t)$ the
# network's own sine and cosine encoding and $G$ four linear layers with ReLU between:
#
# $$s(t) = \mathrm{softplus}\big(G(e(t))\big), \qquad
#   \hat x = s(t)\,\mathrm{round}\big(\mathrm{clip}(x / s(t), -Q, Q)\big), \qquad Q = 2^{b-1} - 1$$
#
# Behind SiLU, whose lowest value is $m = -0.278$, the grid has $2^b$ levels upwards from $m$.
# (The paper calls $s$ a step size; a *step* is the sampler's here.) Both sides as numbers, for
# three values at two scales:

# %%
x = torch.tensor([0.3, 1.1, 9.0])
for s in (0.2, 1.0):
    x_hat = paper.quantize_signed(x, torch.tensor(s), 4)
    print(f"s = {s}:", [round(v, 2) for v in x_hat.tolist()])

# %% [markdown]
# In one call, and then what it does site by site:
#
# ```python
# q = dqlab.quantize(pipe, "tdq", weights=4, activations=8)
# ```

# %%
show.source(paper.step_size)

# %% [markdown]
# ### One site's network
#
# Post-training, the weights stay and each site's network is fitted alone: first towards the
# logarithm of each step's best scale, then on the error itself. **How the paper fits networks
# post-training was not at hand, and the released code only trains: this fit is dqlab's.** Here it
# is for our site, asked about steps of the sampler and about timesteps in between, which no fit
# has seen.

# %% tags=["method-tdq"]
one = seen.of([site])
network = fit_networks(one.flat, one.grids, one.t, one.d, (150, 100))
between = torch.cat([one.t, torch.arange(49.0, 999.0, 5.0)]).unique()
with torch.no_grad():
    scales = network(between)[0].float()
draw.scales_of_site(seen, site, scales, between.tolist())

# %% [markdown]
# The faint ribbon is where $s(t)$ goes between the sampler's steps. The fastest waves of the
# encoding repeat within about six timesteps, the sampler's lie 50 apart, and nobody asked the
# network about those in between. In training $t$ is drawn at random, so it is asked about all.
# <!-- numbers: 50 -->
#
# ### The same picture again

# %%
with torch.no_grad():
    scales = network(one.t)[0].float()
explore.ridges_of(seen, site, "static", scales)

# %% [markdown]
# A table of all sites is all that is left of the networks. Sampling looks one row up per step, so
# it costs what one static scale costs. Here are its most drifting layers; below, a network without
# any fit of its own uses the whole table and answers as the stored one did.

# %%
explore.table_map(results)

# %%
quantized = measured.setting(pipe, "min-max", 4, 4, calibration)


def answers(name, tensor):
    """Stored and live SQNR of W4A4 with a stored table of scales."""
    q = measured.with_steps(quantized, results.tensors[tensor])
    now = metrics.mean_sqnr_db(metrics.error_powers(held_out, q.unet))
    stored = told.of(results.frames["powers"], name, 4, 4)
    was = metrics.mean_sqnr_db(stored[stored["seed"].isin(seeds.HELD_OUT[:2])])
    return redo(f"W4A4, {draw.NAMES[name]}, two seeds", was, now, tolerance=0.2, unit="dB")


print(answers("static", "static"))
print(answers("network", "table"))

# %% [markdown]
# ### Step by step
#
# Weights are at 8 bits here, so that activations are at fault. Compare TDQ with the best single
# scale: where along the run does following time help?

# %%
explore.step_curves(results.frames["powers"])

# %% [markdown]
# ### Does it have to be this network?
#
# Networks with fewer layers, and one that reads $t$ as a plain number. The last column asks about
# steps that were left out of the fit: what a sampler with another step count would meet.

# %%
explore.ablation_table(results.frames["ablations"])

# %%
shaped = told.shapes(results.frames["ablations"])
shaped

# %% [markdown]
# ### Trained instead of fitted
#
# The paper's main form trains everything together on the diffusion loss: weights, their scales,
# and the networks. Each row of a batch has its own timestep, hence its own scales. The baseline
# is LSQ: the same training, with one learned scale per site.
#
# ```python
# tdq = dqlab.recipe("tdq", form="training", updates=80, batch=8)
# lsq = dqlab.recipe("tdq", form="training", steps="static", updates=80, batch=8)
# q = dqlab.quantize(pipe, tdq, weights=4, activations=4)   # data= takes pictures of your own
# ```
#
# A short run of each is stored, with the same seed and the same batches in the same order.

# %%
trained, plan = told.trained_verdict(results.frames["losses"]), measured.Plan()
print(f"{plan.training} updates of {plan.batch} rows each:")
trained

# %%
before = measured.with_steps(quantized, results.tensors["static"])
now = measured.diffusion_loss(before, measured.held_out_garments(), pipe)["loss"].mean()
was = results.frames["losses"].query("setting == 'before'")["loss"].mean()
print(redo("W4A4, loss before training", was, now, tolerance=0.02))

# %% [markdown] tags=["quoted"]
# What the paper reports after training at W4A4, by FID, lower is better (quoted): DDIM on
# CIFAR-10 with 100 steps 7.30 for LSQ, 6.30 for ranges measured at run time, 4.48 for TDQ; latent
# diffusion on LSUN-Churches 5.06 for LSQ, 4.64 for TDQ. Post-training at W8A5: CIFAR-10 5.71
# against 22.43 for PTQ4DM, Churches 4.85 against 7.06. It trained for up to 200,000 updates.

# %% [markdown]
# ## 3. Ranges at run time
#
# One can also look at the tensor itself, each time, and take its extremes as the range. That is
# called *dynamic* quantization. No data is needed, and nothing is ever clipped. That cuts both
# ways: one outlier sets the scale of all, where a fitted scale would clip it.
#
# ```python
# q = dqlab.quantize(pipe, dqlab.recipe("rtn", dynamic="sample"), weights=4, activations=8)
# ```
#
# But a layer must read its whole input before it can round the first value of it. A linear layer
# may have a range per row, `dynamic="token"`, found in passing while the row is made. Each output
# pixel of a convolution adds up several input pixels, so all of them must share one scale.

# %%
live = measured.setting(pipe, "run time", 4, 4, calibration)
now = metrics.mean_sqnr_db(metrics.error_powers(held_out, live.unet))
stored = told.of(results.frames["powers"], "run time", 4, 4)
was = metrics.mean_sqnr_db(stored[stored["seed"].isin(seeds.HELD_OUT[:2])])
print(redo("W4A4, at run time, two seeds", was, now, tolerance=0.2, unit="dB"))

# %% [markdown]
# ### Accuracy against cost
#
# Counted, not timed: what each way reads once more in every call of the network, how many
# tensors' extremes a whole picture asks for, and how many scales are stored.

# %%
work = timed.cost_table(pipe, calibration)
explore.cost_rows(work, results.frames["ledger"], results.tensors["table"])

# %% [markdown]
# And timed, for rounding alone: each way rounds the same tensor of the model in turn, in processor
# time. What follows is the time over that of a static range, median and quartiles.

# %%
clocked = ph.stored.load(timing.NAME)
clocked

# %%
print(timing.ratios(clocked.frames["times"]).round(2).to_string(index=False))

# %% [markdown]
# A sampler has one step at a time, so one row of the table serves the whole batch. Samples of a
# batch may also stand at different steps; the simulator therefore looks a scale up for every
# sample, and pays for that.
#
# A read hurts most where a layer computes little per value it reads. These do the least:

# %%
work["per value"] = work["operations"] / work["values"]
some = work[work["operations"] > 0].sort_values("per value").head(5)
print(some[["layer", "values", "per value"]].round(0).to_string(index=False))

# %% [markdown]
# ## 4. The ledger
#
# The same rows close every notebook of this series. *Paired error* compares each picture with the
# one that full precision paints from the same seed. *Kept* counts pictures that a classifier
# still reads the same. Sizes and bit-operations are computed, not timed.

# %% tags=["explorer"]
explore.picture_explorer(results)

# %%
explore.ledger_table(results.frames["ledger"])

# %%
runs = results.frames["powers"]["seed"].nunique()
print(f"{runs} runs stand behind every SQNR.", told.room(results.frames["ledger"]), sep="\n")
told.pictures(results.frames["ledger"])

# %% [markdown]
# ## 5. What reproduces here
#
# A claim counts as reproduced from the margin in the fourth column on, if its interval is clear
# of zero. Sites are tensors at 4 bits, judged on runs that set nothing.

# %%
claims = told.claims(results.frames) | timing.claims(clocked.frames["times"])
explore.claims_table(claims)

# %% [markdown]
# Where a claim comes out weaker here than in the paper, look at the decider. Near $R = 1$ the
# curve is flat, and a network whose ranges grow fivefold over the run lies on its slope.
#
# ## Exercises
#
# Replace `raise NotImplementedError()`, run, then run the check below it.

# %%
show.exercise(
    "What a table gains",
    "x holds values [T, M], a row per sampler step. Write table_gain_db(x, bits): by how many dB "
    "the SQNR rises when every row has its own best scale in place of the best one for all "
    "rows together. Powers are summed over all rows.",
    minutes=15,
    difficulty=4,
    hints=[
        "shrink_search(x, Grid(bits), p=2.0) gives the range of least squared error; "
        "Grid(bits).fake_quant(x, r) rounds.",
        "Sum the error powers of the rows first, take the logarithm last.",
    ],
)


# %% tags=["exercise"] exercise="table-gain"
def table_gain_db(x, bits):
    """Gain in dB of a scale per row on the best one for all rows."""

    ### BEGIN SOLUTION
    def power(part):
        r = shrink_search(part, Grid(bits), p=2.0)
        return (Grid(bits).fake_quant(part, r) - part).square().sum()

    own = sum(power(row) for row in x)
    return float(10 * (power(x) / own).log10())
    ### END SOLUTION


# %% tags=["check"] exercise="table-gain"
check = show.Check("what a table gains")
generator = torch.Generator().manual_seed(3)
plain = torch.randn(20, 4096, generator=generator)


@check.case("20 Gaussian rows, 8 times wider from first to last: 3.5 dB", "Sum, then log.")
def _(answer):
    return abs(answer(plain * torch.logspace(0, 1, 20, 8.0)[:, None], 4) - 3.5) < 0.3


@check.case("rows of equal width gain nothing", "Then one best scale serves all.")
def _(answer):
    return abs(answer(plain, 4)) < 0.1


check(table_gain_db)


# %% tags=["mistake"] exercise="table-gain" why="means decibels over rows, so narrow ones rule"
def table_gain_db(x, bits):
    fmt, shared = Grid(bits), shrink_search(x, Grid(bits), p=2.0)
    lost = []
    for row in x:
        own = shrink_search(row, fmt, p=2.0)
        ratio = [(fmt.fake_quant(row, r) - row).square().sum() for r in (shared, own)]
        lost.append(10 * (ratio[0] / ratio[1]).log10())
    return float(sum(lost) / len(lost))


# %% tags=["mistake"] exercise="table-gain" why="compares with min-max, not with the best scale"
def table_gain_db(x, bits):
    def power(part, r):
        return (Grid(bits).fake_quant(part, r) - part).square().sum()

    own = sum(power(row, shrink_search(row, Grid(bits), p=2.0)) for row in x)
    return float(10 * (power(x, Grid(bits).params(x.min(), x.max())) / own).log10())


# %% [markdown] tags=["solution"]
# The wide rows rule the sum, and the best shared scale already serves them. Per row, the
# narrow ones would gain far more; but their error is small beside that of the wide ones.

# %%
show.exercise(
    "Does it follow time?",
    "Write time_correlation(t, A): Pearson's correlation of the timesteps t and the ranges A, "
    "both tensors [T]. A range that never moves correlates with nothing: give 0.",
    minutes=10,
    difficulty=2,
    hints=["Subtract the means first.", "What is divided by, and when is that zero?"],
)


# %% tags=["exercise"] exercise="follows"
def time_correlation(t, A):
    """Pearson's r, 0 where A does not move."""
    ### BEGIN SOLUTION
    dt, dA = t - t.mean(), A - A.mean()
    norm = (dt.square().sum() * dA.square().sum()).sqrt()
    return float((dt * dA).sum() / norm) if norm > 0 else 0.0
    ### END SOLUTION


# %% tags=["check"] exercise="follows"
check = show.Check("does it follow time")
when = torch.linspace(999, 49, 20)


@check.case("a line that rises with t gives 1, one that falls gives -1", "The sign matters.")
def _(answer):
    rises, falls = answer(when, 3 + 2 * when), answer(when, 5000 - 2 * when)
    return abs(rises - 1) < 1e-4 and abs(falls + 1) < 1e-4


@check.case("a range that never moves gives 0", "0 / 0 is no number.")
def _(answer):
    return answer(when, torch.full((20,), 2.0)) == 0


check(time_correlation)


# %% tags=["mistake"] exercise="follows" why="covariance, not divided by both deviations"
def time_correlation(t, A):
    return float(((t - t.mean()) * (A - A.mean())).mean())


# %% tags=["mistake"] exercise="follows" why="squares it, so falling looks like rising"
def time_correlation(t, A):
    dt, dA = t - t.mean(), A - A.mean()
    norm = dt.square().sum() * dA.square().sum()
    return float((dt * dA).sum().square() / norm) if norm > 0 else 0.0


# %% [markdown] tags=["solution"]
# TDQ's claim rests on this number: where it is near zero, a timestep says nothing about the range.

# %%
show.exercise(
    "A batch of many timesteps",
    "In training each sample of a batch has its own timestep. x is [B, C, H, W] and s is [B]. "
    "Write quantize_rows(x, s, bits): round every sample with its own scale, on the levels "
    "-Q..Q.",
    minutes=10,
    difficulty=2,
    hints=["Q is 2 ** (bits - 1) - 1.", "Give s three more dimensions of size one, at its end."],
)


# %% tags=["exercise"] exercise="rows"
def quantize_rows(x, s, bits):
    """Each sample on its own grid."""
    ### BEGIN SOLUTION
    s, Q = s.reshape(-1, 1, 1, 1), 2 ** (bits - 1) - 1
    return s * (x / s).clamp(-Q, Q).round()
    ### END SOLUTION


# %% tags=["check"] exercise="rows"
check = show.Check("a batch of many timesteps")
batch = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(4))
own = torch.tensor([0.1, 0.2, 0.4, 0.8])


@check.case("together equals one by one", "Along which dimension must s lie?")
def _(answer):
    alone = [paper.quantize_signed(row, s, 4) for row, s in zip(batch, own, strict=True)]
    return torch.allclose(answer(batch, own, 4), torch.stack(alone))


@check.case("at 4 bits a sample has at most 15 values", "Q is 7: how many levels are -7..7?")
def _(answer):
    return len(answer(9 * batch, own, 4)[0].unique()) <= 15


check(quantize_rows)


# %% tags=["mistake"] exercise="rows" why="lays the scales along the last dimension"
def quantize_rows(x, s, bits):
    Q = 2 ** (bits - 1) - 1
    return s * (x / s).clamp(-Q, Q).round()


# %% tags=["mistake"] exercise="rows" why="gives every sample the mean scale"
def quantize_rows(x, s, bits):
    Q = 2 ** (bits - 1) - 1
    return s.mean() * (x / s.mean()).clamp(-Q, Q).round()


# %% [markdown] tags=["solution"]
# `[B]` against `[B, C, H, W]` would line up with the width: a quiet mistake where both are equal.

# %%
show.exercise(
    "Levels behind SiLU",
    "SiLU never goes below m = -0.278. Write silu_levels(m, s, bits): the 2**bits values of the "
    "grid that begins at m, ascending, as a tensor.",
    minutes=5,
    difficulty=1,
    hints=["torch.arange(n) counts from 0.", "The lowest level is m itself."],
)


# %% tags=["exercise"] exercise="silu"
def silu_levels(m, s, bits):
    """Levels upwards from m."""
    ### BEGIN SOLUTION
    return m + s * torch.arange(2**bits)
    ### END SOLUTION


# %% tags=["check"] exercise="silu"
check = show.Check("levels behind SiLU")


@check.case("it begins at m", "Nothing lies below SiLU's lowest value.")
def _(answer):
    return abs(float(answer(-0.278, 0.25, 4)[0]) + 0.278) < 1e-6


@check.case("4 bits make 16 levels, one scale apart", "Count from code 0 to code 15.")
def _(answer):
    levels = answer(-0.278, 0.25, 4)
    return len(levels) == 16 and bool((levels.diff() - 0.25).abs().max() < 1e-5)


check(silu_levels)


# %% tags=["mistake"] exercise="silu" why="levels around zero: half of them stay idle"
def silu_levels(m, s, bits):
    return s * torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))


# %% tags=["mistake"] exercise="silu" why="leaves out the top level, as the released code does"
def silu_levels(m, s, bits):
    return m + s * torch.arange(2**bits - 1)


# %% [markdown] tags=["solution"]
# Zero is in general no level of this grid. Behind SiLU few values are exactly zero.

# %%
show.exercise(
    "Where a network starts",
    "Before any fit, s(t) should be s0 at every t. Write start_bias(s0): the bias z of the last "
    "layer with log(1 + exp(z)) = s0. s0 is a float64 tensor from one millionth to 1000.",
    minutes=10,
    difficulty=3,
    hints=["Solve for z, then try it at 1000.", "torch.expm1(x) is exp(x) - 1, exact near 0."],
)


# %% tags=["exercise"] exercise="start"
def start_bias(s0):
    """The inverse of softplus."""
    ### BEGIN SOLUTION
    return s0 + (-torch.expm1(-s0)).log()
    ### END SOLUTION


# %% tags=["check"] exercise="start"
check = show.Check("where a network starts")


def returns(answer, s0):
    z = answer(torch.tensor(s0, dtype=torch.float64))
    return abs(float(torch.nn.functional.softplus(z)) / s0 - 1) < 1e-5


@check.case("softplus gives s0 = 0.05 back", "log(1 + exp(z)) = s0, solved for z.")
def _(answer):
    return returns(answer, 0.05)


@check.case("also at one millionth and at 1000", "exp(1000) is infinite; rewrite it.")
def _(answer):
    return returns(answer, 1e-6) and returns(answer, 1000.0)


check(start_bias)


# %% tags=["mistake"] exercise="start" why="overflows for large s0"
def start_bias(s0):
    return (s0.exp() - 1).log()


# %% tags=["mistake"] exercise="start" why="inverts exp, not softplus"
def start_bias(s0):
    return s0.log()


# %% [markdown] tags=["solution"]
# The same number twice, but $s + \log(1 - e^{-s})$ neither overflows nor cancels.

# %%
show.exercise(
    "What run-time ranges read",
    "Layers read tensors of (channels, height, width). Write extra_reads(layers, steps): how many "
    "values a picture's whole run reads once more, only to find their extremes.",
    minutes=5,
    difficulty=1,
    hints=["One tensor has channels * height * width values.", "How often does each layer run?"],
)


# %% tags=["exercise"] exercise="reads"
def extra_reads(layers, steps):
    """Values read once more."""
    ### BEGIN SOLUTION
    return steps * sum(c * h * w for c, h, w in layers)
    ### END SOLUTION


# %% tags=["check"] exercise="reads"
check = show.Check("what run-time ranges read")


@check.case("one layer of 24 x 32 x 32 over 20 steps: 491520", "Every step reads it again.")
def _(answer):
    return answer([(24, 32, 32)], 20) == 491520


@check.case("layers add up", "Each brings its own tensor.")
def _(answer):
    return answer([(24, 32, 32), (96, 8, 8)], 1) == 30720


check(extra_reads)


# %% tags=["mistake"] exercise="reads" why="counts one step of many"
def extra_reads(layers, steps):
    return sum(c * h * w for c, h, w in layers)


# %% tags=["mistake"] exercise="reads" why="counts ranges, not the values read to find them"
def extra_reads(layers, steps):
    return steps * len(layers)


# %% [markdown] tags=["solution"]
# A table of scales has as many numbers as this counts ranges: tensors times steps.
#
# ## Recap

# %%
for verdict in (natural, answer, shaped, trained):
    print("-", verdict)
for claim in claims.values():
    print(f"- {claim.says}: {claim.outcome}")

# %% [markdown]
# Every value must land on one of $2^b$ levels. Time is known before a layer runs, so levels can
# follow it for free; how much that is worth is written in $R$. What is left over: the timestep
# itself also passes through quantized layers. Whether the network can still tell the time is the
# topic of `1.4`.
#
# ## References
#
# - J. So and others, *Temporal Dynamic Quantization for Diffusion Models*, NeurIPS 2023,
#   arXiv 2306.02316.
# - S. Esser and others, *Learned Step Size Quantization*, ICLR 2020, arXiv 1902.08153.
# - Y. Shang and others, *Post-training Quantization on Diffusion Models* (PTQ4DM), CVPR 2023,
#   arXiv 2211.15736.
# - M. Nagel and others, *A White Paper on Neural Network Quantization*, arXiv 2106.08295.
