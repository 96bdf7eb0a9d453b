# %% [markdown]
# # 1.4 Can the network still tell the time?
#
# A diffusion network is one network for all steps. What tells it where on the way it stands is a
# small path beside the picture: a timestep goes in, one vector for every block comes out. Round
# that path, and the network may take one step for another.
#
# - **You will be able to** read a network's clock and say which step it believes to be at; repair
#   the clock without a single picture; choose levels for skewed values by what they must tell
#   apart; and bring scattered channels onto one range, knowing when that hurts.
# - **Needs** `0-start-here`, scenes 5 to 8: levels, scale, dB, W4A8.
# - **Run time**: {{run time}}. Reading and playing take about 40 minutes.
# - **Papers**: TFMQ-DM (Huang and others, CVPR 2024); QVD (Tian and others, ACM MM 2024).
# <!-- numbers: 40 -->

# %% tags=["setup"]
import torch

import dqlab
from dqlab import phenomena as ph
from dqlab import seeds, show
from dqlab.phenomena import clock
from dqlab.phenomena import time_checks as checks
from dqlab.phenomena import time_information as measured
from dqlab.phenomena.stored import redo
from dqlab.reference import tfmq_dm
from dqlab.show import time_information as explore
from dqlab.show.tables import ledger_table
from dqlab.trajectory import record

dqlab.setup()

# %% [markdown]
# The model is `latent-unet`, which paints from captions; section 3 goes on with `video-unet`. One
# run of 20 steps is enough for the clock: it never sees a picture. What takes minutes is stored.

# %%
pipe = dqlab.load("latent-unet")
brief, _ = record(pipe, seeds.CALIBRATION[:1])
results, lines = ph.stored.load(measured.NAME), checks.lines()
print(results, checks.told(lines), checks.stale(lines), sep="\n")

# %% [markdown]
# ## 1. The phenomenon
#
# ### The path of the time
#
# The timestep $t$ becomes sines and cosines $I(t)$, then two layers make $h(t)$, and every
# residual block $i$ has a projection of its own:
#
# $$emb_{t,i} = g_i(h(t)) = W_i\,\mathrm{SiLU}(h(t)) + b_i$$
#
# These vectors are the *temporal features*. With 20 sampling steps there are 20 of them per
# block, ever.
# <!-- numbers: 20 -->

# %%
now, always = clock.clock(pipe, brief), clock.clock(pipe, brief, clock.ALL_STEPS)
print(f"{len(now.path.blocks)} blocks, {len(now.t)} steps, {now.inputs.shape[1]} values in u.")
show.source(tfmq_dm.temporal_features)

# %% [markdown]
# ### Round nothing but the clock
#
# The rest of the network stays in full precision. How far does a feature turn?

# %%
rounded = clock.only_clock(pipe, brief, 4, None, temporal="nearest")
turned = clock.cosine_table(now, rounded_features := now.of(rounded))
worst = turned.loc[turned["away"].idxmax()]
explore.turn_map(
    turned,
    f"W4, clock alone: features turn most at {worst['layer']}, step {worst['step']:.0f}, where "
    f"the cosine is {1 - worst['away']:.4f}.",
)

# %%
varied, late = clock.turn_facts(turned)
print(f"{100 * varied:.0f} % of the blocks turn 3 times as far at one step as at another.")
print(f"The last third of the steps turns {late:.2f} times as far as the first.")

# %% [markdown]
# Such cosines look harmless. But is it the angle that counts, or what lies within it? Predict.

# %%
among_own = clock.perceived_table(now, rounded_features)
finding = measured.steps_mistaken(among_own, 4)
asked = explore.question(finding.key)
asked

# %%
among_all = clock.perceived_table(now, rounded_features, always)
block = measured.most_mistaken(among_all)
asked.reveal(explore.clock_face({explore.NEAREST: among_all}, block, finding.words))

# %% [markdown]
# The picture looks each of the 20 features up among all 1000 timesteps the network was trained
# on. The sentence above it counts only the sampler's own 20, which lie 50 apart.
# <!-- numbers: 20, 1000, 50 -->

# %%
print(f"among the sampler's steps: {100 * clock.mistaken(among_own):.1f} % mistaken")
print(f"among all timesteps: {100 * clock.mistaken(among_all):.1f} % mistaken")

# %% [markdown] tags=["quoted"]
# TFMQ-DM shows one block of Stable Diffusion at W4A8 with 50 steps. Its cosine stays above 0.985
# at first and dips to between 0.92 and 0.97 in the last 20 steps. Near the end it takes steps for
# others up to 5 away (quoted).

# %% [markdown]
# ### What decides
#
# A clock can be misread once its error reaches half the distance to the next step; it is, if the
# error points there. So the *decider* of this topic is error over distance, one ratio for every
# block. The curve is a made-up clock: points on a line, with an error of a given length in a
# random direction, which mostly lies across.

# %%
coarse = clock.only_clock(pipe, brief, 2, None, temporal="nearest")
apart = {
    "ours, W4": clock.separation(always, always.of(rounded)),
    "ours, W2": clock.separation(always, always.of(coarse)),
}
explore.decider_chart(apart)

# %% [markdown]
# ## 2. TFMQ-DM: set the clock apart
#
# *Picture.* A clock in a drawer of its own. *Words.* Block reconstruction rounds a projection so
# that its block's output fits a few pictures; its features pay for that. TFMQ-DM takes the whole
# path out of the blocks and reconstructs it alone, on every timestep there is, with the features
# themselves as the target (TIAR):
#
# $$\mathcal L_\text{TIAR} = \sum_i \big\| g_i(h(t)) - \hat g_i(\hat h(t)) \big\|_F^2$$
#
# One call does it, together with the ranges below:
#
# ```python
# dqlab.quantize(pipe, "tfmq-dm", weights=4, activations=8)
# ```

# %% tags=["method-tfmq-dm"]
learned = clock.only_clock(pipe, brief, 4, None)
loss = dqlab.describe(learned)["choices"]["tiar loss"]
left = tfmq_dm.tiar_loss(now.features, now.of(learned))
print(f"loss to nearest {loss['nearest']:.3g}, learned {loss['learned']:.3g}, again {left:.3g}")

# %% [markdown]
# Both sides of the equation as numbers. And the same clock again, repaired:

# %%
learned_features = now.of(learned)
repaired = clock.perceived_table(now, learned_features, always)
tables = {
    (4, explore.NEAREST): among_all,
    (4, explore.LEARNED): repaired,
    (2, explore.NEAREST): clock.perceived_table(now, now.of(coarse), always),
}
was = checks.value(lines, "latent-unet", (4, 4), "time path, tfmq-dm", "tiar_loss").value
print(redo("TIAR's loss at W4", was, loss["learned"], tolerance=0.1))

# %% tags=["explorer"]
explore.clock_explorer(tables)

# %% [markdown]
# ### A range for every step
#
# The path's activations are a finite set too, so each step may have its own range (FSC): min-max
# of that step, exactly.
#
# $$s_t = \frac{\max(x_t, 0) - \min(x_t, 0)}{2^b - 1}$$

# %%
explore.ranges_chart(clock.range_table(now), "u")

# %% tags=["nbval-unit-db"]
gains = clock.step_gains(pipe, brief, now, (4, 6, 8))
print(gains.groupby("bits")["gain"].mean().round(1).to_string())

# %% [markdown]
# ### Or keep the answers
#
# The journal version of the paper goes on: if there are only 20 vectors per block, store them in
# 8 bits and drop the path. Its formulas were not at hand; this is a reconstruction.
# <!-- numbers: 20 -->

# %%
kept = clock.only_clock(pipe, brief, 2, 4, temporal="nearest", maintenance="cache")
away = clock.cosine_table(now, now.of(kept))["away"].max()
eight = clock.rounded_turn(now)
print(f"W2A4, features kept: the largest turn is {away:.1e}; of features in 8 bits {eight:.1e}")
show.source(tfmq_dm.cache_is_better)

# %% [markdown]
# ### Does a better clock paint better?
#
# So far features were compared with features. Now the same seeds paint with nothing but the clock
# rounded: how far do their latents turn from full precision's, step by step?

# %% tags=["nbval-tolerance-0.2"]
held = seeds.HELD_OUT[:2]
exact = record(pipe, held)[0]
arms = dict(zip(explore.ON_THE_WAY, (rounded, learned, coarse, kept), strict=True))
on_the_way = {name: record(q, held)[0] for name, q in arms.items()}
explore.trajectory_chart(clock.trajectory_table(exact, on_the_way), len(held))

# %% [markdown]
# The stored lines say what else came of it: whether block reconstruction really spoils the clock
# (on few calibration states), and what a whole network gains, its other weights rounded to
# nearest. A gain's interval is over paired seeds, of the first row over blocks.

# %%
explore.claims_table("TFMQ-DM's checks, on latent-unet.", checks.of_tfmq(lines))

# %%
switched = checks.ablation(lines)
print(checks.monotone(switched))
explore.ablation_table(switched)

# %% [markdown] tags=["quoted"]
# What the paper reports (quoted): its Stable Diffusion, with the clock alone rounded, ends at a
# cosine of 0.92. On LSUN-Bedrooms at W4A8, FID is 9.36 with block reconstruction and 3.68 with
# TFMQ-DM; on MS-COCO with Stable Diffusion 14.49 for Q-Diffusion and 13.36. The released code
# gives every layer ranges by step, and leaves products of attention in full precision. An
# independent run in the survey's own tables saw hardly any of this: on Bedrooms at W4A8 11.24 for
# Q-Diffusion and 10.96, and on ImageNet it was the worst of all. FID does not compare with our dB.

# %% [markdown]
# ## 3. QVD: levels that tell steps apart
#
# QVD is about video models, and so is this section. Its body could not be had: only its abstract,
# summaries and a public port. **TDScore, the grid `logtau` and all formulas of SCRI below are
# dqlab's reconstructions.** The port's second grid, powers of two below a threshold and even
# levels above it, is left out.

# %%
video = dqlab.load("video-unet")
clips, shown = record(video, seeds.CALIBRATION[:2])
unseen, _ = record(video, seeds.HELD_OUT[:1])
film = clock.clock(video, clips)
same = all(torch.equal(a, b) for a, b in zip(film.features, now.features, strict=True))
print(f"{shown.shape[1]} frames; time features", "equal" if same else "unlike", "latent-unet's")
explore.clips(shown, seeds.CALIBRATION[:2])

# %% [markdown]
# `video-unet` is a picture model with motion modules between its layers, and only those were
# trained. So it reads the very same clock, for all frames at once.
#
# ### Skewed values
#
# All projections read one tensor, $u = \mathrm{SiLU}(h(t))$.

# %%
skew = measured.skewed(film.inputs)
skew

# %% [markdown]
# A grid for $u$ should be judged by whether steps stay apart, not by plain error. With each
# channel standardised over the steps, $D_{tt'}$ is one minus the cosine between two steps:
#
# $$\mathrm{TDScore} = 1 - \frac{\sum_{t\ne t'} |\hat D_{tt'} - D_{tt'}|}{\sum_{t\ne t'} D_{tt'}}$$

# %% tags=["explorer"]
explore.grid_explorer(film.inputs)

# %% tags=["method-qvd"]
grid_table = clock.grid_table(film.inputs, (3, 4, 6, 8))
explore.grids_table(grid_table)

# %%
logs = measured.log_grids(grid_table)
stored = checks.value(lines, "video-unet", (8, 8), "time grid log2-4-signed", "td_score").value
live = grid_table.set_index("grid")["td_score"]["log2-4-signed"]
print(logs, redo("TDScore of log2 at 4 bits", stored, live, tolerance=0.01), sep="\n")

# %% [markdown]
# Two cautions. `log2` gains nothing from more than 4 bits, for its steps are whole octaves. And a
# uniform grid for every step, TFMQ-DM's answer, stands in the same table.
#
# ### Scattered channels
#
# QVD's second observation: channels differ in range and in centre, so each covers few of the
# levels of a common range. SCRI shifts and scales them, and the weights undo it:
#
# $$X' = (X - \delta)/\sigma,\quad W' = W\,\mathrm{diag}(\sigma),\quad
# b' = b + \textstyle\sum_k W_k\,\delta$$

# %%
layers = clock.channels(video, clips, unseen, every=6)
print(f"a channel covers {100 * layers.coverage()['kappa'].mean():.0f} % of its layer's range")

# %% tags=["explorer"]
explore.channel_explorer(layers)

# %% [markdown]
# Equal ranges look like pure gain, but a narrow channel in a wide range has *headroom*: it may
# leave what was seen of it and still be covered. Once every channel fills the range, it is
# clipped. Ranges below are from two clips, inputs from a third with another caption. (Every sixth
# layer.)

# %% tags=["nbval-unit-db"]
explore.headroom_table(layers.headroom())

# %% [markdown]
# Layers that read the caption meet new words. So `qvd` searches alpha layer by layer, "none"
# included, and judges each half of the calibration clips by ranges from the other half. The
# stored table (every sixteenth layer) compares that with a search on the clips that the ranges
# come from; the rows
# "hindsight" choose on the inputs they are told on, so they are what no search can pass.

# %%
pairs = ((8, 8), (8, 4), (4, 6))
explore.alphas_table({f"W{w}A{a}": checks.alphas(lines, (w, a)) for w, a in pairs})

# %%
checks.see_saw(lines)

# %% [markdown]
# Now whole networks, and one question about time: does a spoilt clock hit every frame alike?
# Clips are held against full precision's pair by pair, from the same seeds; a Fréchet distance
# over clips would need hundreds.

# %%
explore.claims_table("QVD's checks, on video-unet.", checks.of_qvd(lines))

# %%
left_out = checks.missing(lines) or ["nothing of these lists"]
print("Not measured, for want of time:", *left_out, sep="\n- ")

# %% [markdown] tags=["quoted"]
# QVD's abstract reports FVD better by 205.12 than the best method before it, at W8A8 (quoted).
# Model and data set behind that figure are not known to us.

# %% [markdown]
# ## 4. The ledger
#
# Whole picture networks, all other weights rounded to nearest. The last three rows of each pair of
# bits differ in the clock alone. Plain rounding (`rtn`) also sets all its ranges otherwise, by
# min-max without a search.

# %%
runs, painted = results.frames["powers"]["seed"].nunique(), results.frames["ledger"]["pictures"][0]
print(f"{runs} runs behind every SQNR, {painted} pictures behind every paired error and share.")
ledger_table(results.frames["ledger"])

# %% [markdown]
# ## 5. What reproduces here
#
# The claims that need nothing stored but the ledger, computed in this notebook.

# %%
claims = measured.claims(
    {"nearest": turned, "tiar": clock.cosine_table(now, learned_features)},
    {"nearest": among_all, "tiar": repaired},
    (loss["nearest"], loss["learned"]),
    gains,
    (away, eight),
    results.frames["powers"],
)
explore.claims_table("TFMQ-DM on latent-unet.", claims)

# %%
made_up = clock.grid_table(clock.skewed_features(), (4, 6))
of_grids = measured.grid_claims(film.inputs, grid_table, made_up, layers.coverage(alpha=1.0))
explore.claims_table("QVD on video-unet and on made-up features.", of_grids)

# %% [markdown]
# ## Exercises
#
# Replace `raise NotImplementedError()`, run, then run the check below it.

# %%
show.exercise(
    "Which step is it?",
    "E holds the true features of T steps, [T, C], and Eq the rounded ones of the same steps. "
    "Write perceived_step(E, Eq): for every row of Eq the index of the step whose true feature "
    "has the largest cosine with it.",
    minutes=10,
    difficulty=2,
    hints=["Divide every row by its length.", "A product of two matrices gives all cosines."],
)


# %% tags=["exercise"] exercise="perceived"
def perceived_step(E, Eq):
    """Index of the step each rounded feature looks like, [T]."""
    ### BEGIN SOLUTION
    unit = torch.nn.functional.normalize
    return (unit(Eq, dim=1) @ unit(E, dim=1).T).argmax(1)
    ### END SOLUTION


# %% tags=["check"] exercise="perceived"
check = show.Check("which step is it")
truth = torch.randn(9, 16, generator=torch.Generator().manual_seed(0))
sizes, own = torch.arange(1.0, 10.0)[:, None], list(range(9))

check.case("unchanged features are their own step", "Compare E with itself.")(
    lambda answer: answer(truth, truth).tolist() == own
)
check.case("finds features shifted by two steps", "Rows are steps; which index do you return?")(
    lambda answer: answer(truth, truth.roll(-2, 0)).tolist() == [2, 3, 4, 5, 6, 7, 8, 0, 1]
)
check.case("the length of a feature does not matter", "The cosine forgets lengths.")(
    lambda answer: answer(truth * sizes, truth / sizes).tolist() == own
)
check(perceived_step)


# %% tags=["mistake"] exercise="perceived" why="nearest by Euclidean distance minds the length"
def perceived_step(E, Eq):
    return torch.cdist(Eq, E).argmin(1)


# %% tags=["mistake"] exercise="perceived" why="looks along the wrong axis"
def perceived_step(E, Eq):
    unit = torch.nn.functional.normalize
    return (unit(Eq, dim=1) @ unit(E, dim=1).T).argmax(0)


# %% [markdown] tags=["solution"]
# Which row of which is compared decides whether a shift by two comes out as two ahead or behind.

# %%
show.exercise(
    "A range for one step",
    "Values of one step lie between low and high. Write step_range(low, high, bits): the scale "
    "and the whole-numbered zero point of a uniform grid from code 0 to 2**bits - 1 that covers "
    "them and the value 0.",
    minutes=10,
    difficulty=2,
    hints=["Which values must be covered besides low and high?", "Zero must fall on a code."],
)


# %% tags=["exercise"] exercise="range"
def step_range(low, high, bits):
    """(scale, zero point) of one step."""
    ### BEGIN SOLUTION
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    return scale, round(-low / scale)
    ### END SOLUTION


# %% tags=["check"] exercise="range"
check = show.Check("a range for one step")


def gives(low, high, scale, zero):
    """A case: the scale and zero point at 4 bits."""
    return lambda answer: tuple(answer(low, high, 4)) == (scale, zero)


check.case("-1 to 14 at 4 bits: scale 1, zero point 1", "There are 15 gaps between 16 levels.")(
    gives(-1.0, 14.0, 1.0, 1)
)
check.case("3 to 30 at 4 bits reaches down to 0", "Zero is always among the levels.")(
    gives(3.0, 30.0, 2.0, 0)
)
check.case("-30 to -3 at 4 bits ends at 0", "Its zero point is the highest code.")(
    gives(-30.0, -3.0, 2.0, 15)
)
check(step_range)


# %% tags=["mistake"] exercise="range" why="leaves zero out of the range"
def step_range(low, high, bits):
    scale = (high - low) / (2**bits - 1)
    return scale, round(-low / scale)


# %% tags=["mistake"] exercise="range" why="counts levels where it should count gaps"
def step_range(low, high, bits):
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 2**bits
    return scale, round(-low / scale)


# %% [markdown] tags=["solution"]
# A zero point outside the codes cannot be stored in as many bits as the codes have.

# %%
show.exercise(
    "What keeping costs",
    "A sampler has `steps` steps, and the blocks' features have these numbers of channels. Write "
    "kept_bytes(steps, channels): bytes to keep every feature in 8 bits, with a scale and a zero "
    "point of 4 bytes each for every feature vector.",
    minutes=5,
    difficulty=1,
    hints=["One byte for every value.", "How many vectors are there?"],
)


# %% tags=["exercise"] exercise="kept"
def kept_bytes(steps, channels):
    """Bytes of all kept features."""
    ### BEGIN SOLUTION
    return steps * (sum(channels) + 8 * len(channels))
    ### END SOLUTION


# %% tags=["check"] exercise="kept"
check = show.Check("what keeping costs")


@check.case("one block of 64 channels, 20 steps: 1440 bytes", "64 values and 8 bytes a step.")
def _(answer):
    return answer(20, [64]) == 1440


@check.case("blocks add up", "Each brings its own ranges.")
def _(answer):
    return answer(10, [48, 96, 96]) == 2640


check(kept_bytes)


# %% tags=["mistake"] exercise="kept" why="one range for all steps of a block"
def kept_bytes(steps, channels):
    return steps * sum(channels) + 8 * len(channels)


# %% tags=["mistake"] exercise="kept" why="counts full-precision values"
def kept_bytes(steps, channels):
    return steps * (4 * sum(channels) + 8 * len(channels))


# %% [markdown] tags=["solution"]
# A few kilobytes: less than the path they stand for.

# %%
show.exercise(
    "Rounding to powers of two",
    "Write nearest_power(y): y, from 0 up to 1, rounded to the nearest power of two 2**-q, the "
    "middle between two powers going up; 0 stays 0.",
    minutes=10,
    difficulty=2,
    hints=["Find the power at or below y.", "Half-way to the next one is 1.5 times it."],
)


# %% tags=["exercise"] exercise="power"
def nearest_power(y):
    """The nearest 2**-q of one number."""
    ### BEGIN SOLUTION
    if y == 0:
        return 0.0
    below = 1.0
    while below > y:
        below /= 2
    return 2 * below if y >= 1.5 * below else below
    ### END SOLUTION


# %% tags=["check"] exercise="power"
check = show.Check("rounding to powers of two")


@check.case("0.7 lies nearer to 1/2, 0.8 nearer to 1", "The middle of 1/2 and 1 is 3/4.")
def _(answer):
    return answer(0.7) == 0.5 and answer(0.8) == 1.0


@check.case("0.72 is 1/2, though its logarithm is nearer to that of 1", "Middles are plain means.")
def _(answer):
    return answer(0.72) == 0.5 and answer(0.75) == 1.0


@check.case("powers and zero stay", "What is on the grid stays there.")
def _(answer):
    return [answer(v) for v in (0, 1, 0.25, 0.0625)] == [0, 1, 0.25, 0.0625]


check(nearest_power)


# %% tags=["mistake"] exercise="power" why="rounds the logarithm: the middle is geometric"
def nearest_power(y):
    return 0.0 if y == 0 else 2.0 ** round(float(torch.tensor(y, dtype=torch.float64).log2()))


# %% tags=["mistake"] exercise="power" why="always rounds down"
def nearest_power(y):
    below = 1.0
    while 0 < y < below:
        below /= 2
    return below if y else 0.0


# %% [markdown] tags=["solution"]
# `log2` of the port rounds at plain middles, `logtau` at geometric ones: they differ between 1.41
# and 1.5 times a power.
# <!-- numbers: 1.41, 1.5 -->

# %%
show.exercise(
    "Zeros at the border",
    "SCRI shifts and scales channels, X' = (X - delta) / sigma. The convolution behind it used to "
    "pad X with zeros. Write border(delta, sigma): what X' must be padded with, per channel.",
    minutes=5,
    difficulty=3,
    hints=["What does a zero of X become?", "The padding must mean the same as before: X = 0."],
)


# %% tags=["exercise"] exercise="border"
def border(delta, sigma):
    """The padding value of every channel, [C]."""
    ### BEGIN SOLUTION
    return -delta / sigma
    ### END SOLUTION


# %% tags=["check"] exercise="border"
check = show.Check("zeros at the border")
delta, sigma = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 0.25, 0.5])


@check.case("a channel around 0 keeps its zeros", "Nothing is shifted there.")
def _(answer):
    return answer(delta, sigma)[2] == 0


@check.case("the others get the shifted, scaled zero", "Put X = 0 into the formula.")
def _(answer):
    return torch.allclose(answer(delta, sigma), torch.tensor([-0.5, 4.0, 0.0]))


check(border)


# %% tags=["mistake"] exercise="border" why="pads with zeros, which now mean delta"
def border(delta, sigma):
    return torch.zeros_like(delta)


# %% tags=["mistake"] exercise="border" why="forgets the scale"
def border(delta, sigma):
    return -delta


# %% [markdown] tags=["solution"]
# Padding the shifted tensor with zeros says "delta" at every border: another function.
#
# ## Recap

# %%
for verdict in (finding, checks.monotone(switched), skew, logs, checks.see_saw(lines)):
    print("-", verdict)
for claim in (*claims.values(), *of_grids.values()):
    print(f"- {claim.says}: {claim.outcome}")
print("Stored:", checks.tally({**checks.of_tfmq(lines), **checks.of_qvd(lines)}))

# %% [markdown]
# Every value must land on one of $2^b$ levels. On the time path all values are known beforehand,
# so nobody has to guess: reconstruct them alone, give each step its range, or keep the answers.
# What is left over is an error that all pictures share. That is the topic of `1.5`.
#
# ## References
#
# - Y. Huang and others, *TFMQ-DM: Temporal Feature Maintenance Quantization for Diffusion
#   Models*, CVPR 2024, arXiv 2311.16503; journal version arXiv 2407.19547.
# - S. Tian and others, *QVD: Post-training Quantization for Video Diffusion Models*, ACM
#   MM 2024, arXiv 2407.11585.
# - M. Nagel and others, *Up or Down? Adaptive Rounding for Post-Training Quantization*, ICML
#   2020, arXiv 2004.10568.
