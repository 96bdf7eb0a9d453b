# %% [markdown]
# # 1.1 Which states must the chooser have seen?
#
# A quantizer's range is chosen once, on some inputs, and used at every sampling step. The network
# is the same at all steps. Its inputs are not. So whoever chooses must have seen enough of the
# run, and this notebook asks how much is enough.
#
# - **You will be able to** say which steps a calibration set misses; draw PTQ4DM's and EDA-DM's
#   sets yourself; find a chooser's blind spot without running a quantized network; and judge both
#   papers against evenly spread steps.
# - **Needs** `0-start-here`, scenes 6, 9 and 12: clipping, dB per step, ranges that move.
# - **Run time**: {{run time}}. Reading and playing take about 40 minutes.
# - **Papers**: PTQ4DM (Shang and others, CVPR 2023), EDA-DM (Liu and others, 2024).
# <!-- numbers: 40 -->

# %% tags=["setup"]
import torch

import dqlab
from dqlab import phenomena as ph
from dqlab import seeds, show
from dqlab.phenomena import calibration as cal
from dqlab.phenomena import calibration_checks as checks
from dqlab.phenomena import calibration_strategy as measured
from dqlab.phenomena import fine_grained as learned
from dqlab.phenomena.stored import redo
from dqlab.reference import eda_dm, ptq4dm
from dqlab.show import calibration_strategy as explore
from dqlab.show.tables import ledger_table
from dqlab.trajectory import record

dqlab.setup()

# %% [markdown]
# The model is `pixel-unet`, 20 steps. Ranges in the first chapter are min-max over states of the
# calibration runs, 160 of them for every source; all results are told on runs that no range has
# seen. What takes minutes was measured beforehand and carries its origin.
# <!-- numbers: 160 -->

# %%
pipe = dqlab.load("pixel-unet")
results = ph.stored.load(measured.NAME)
frames = results.frames
results

# %% [markdown]
# ## 1. The phenomenon
#
# ### Ranges drift
#
# The *decider* of this topic is one number per site, how much its reach moves over the run:
# $R = \max_t / \min_t$ of the largest absolute value. At $R = 1$ any step will do.

# %%
drift = measured.drifts(frames["drift"])
drift

# %%
explore.decider_of(frames["drift"])

# %% [markdown] tags=["quoted"]
# PTQ4DM shows single layers whose range goes from about ±20 to ±40, others from ±35 to ±70,
# between two steps of one run (its figure of ranges; quoted).

# %% [markdown]
# ### Ranges of one step, used at another
#
# Each row reads its ranges at one step, and the quantized network is asked at every step. The
# diagonal is where a range is at home.

# %%
explore.matrix(results)

# %% [markdown]
# The first row again, live, on the runs behind the stored one:

# %% tags=["nbval-unit-db"]
states, images = record(pipe, seeds.CALIBRATION[: measured.Plan().trajectories])
bench = measured.bench_on(pipe, states[states.step == 0], images)
held_out, _ = record(pipe, seeds.HELD_OUT[: measured.Plan().crossed])
row = measured.cross(bench, held_out, steps=[0])
stored = frames["matrix"].query("ranges_from == 0")
print(redo("Ranges of step 0 at all steps", stored["db"].mean(), row["db"].mean(),
           tolerance=0.2, unit="dB"))  # fmt: skip

# %% [markdown]
# ### Predict
#
# Four choosers, each of whom has seen one kind of state only.

# %%
ruin = measured.ruins(frames["pictures"])
asked = explore.question(ruin.key)
asked

# %%
asked.reveal(explore.pictures(results))

# %%
print(ruin)

# %% [markdown]
# Finished pictures look like the natural choice, because that is how image classifiers are
# calibrated. But nobody ever asks the network about a finished picture: even its last input still
# holds some noise, and all others hold more. What those reach is cut off.
#
# Now move the rug. Above, which steps a source picks; below, what its ranges do at each step.

# %% tags=["explorer"]
explore.source_explorer(results)

# %% [markdown]
# A range that covers all steps is wide, and a wide range has coarse levels. At 8 bits that is
# cheap. At fewer?

# %%
more = ph.stored.load(checks.NAME)
more

# %%
fewer = checks.fewer_bits(more.frames["fewer"])
fewer

# %% [markdown]
# ## 2. PTQ4DM: normally distributed steps
#
# *Picture.* Draw a step for each sample, and more of them near the picture. *Words.* From fresh
# noise, sample down to that step in full precision and keep what the network is asked there.
# *Equation* (section 3.3), with $t = 0$ at the picture:
#
# $$t_i \sim \mathcal N(\mu, \sigma^2),\quad \mu \le T/2,\quad
# t_i \leftarrow \mathrm{clamp}(\lfloor t_i \rfloor, 0, T - 1)$$
#
# ```python
# dqlab.quantize(pipe, "ptq4dm", weights=8, activations=8)
# ```
#
# Nothing is cut off the normal distribution: what falls outside gathers at both ends. Both sides
# as numbers, with the published script's $\mu = \sigma = 0.4\,T$:

# %% tags=["method-ptq4dm"]
shares = ptq4dm.time_shares(20)
t = ptq4dm.time_steps(2_000, 20, generator=torch.Generator().manual_seed(0))
for step, name in ((0, "the picture"), (10, "half-way"), (19, "pure noise")):
    print(f"t = {step} ({name}): expected {100 * shares[step]:.1f} %, "
          f"drawn {100 * float((t == step).double().mean()):.1f} %")  # fmt: skip

# %%
show.source(ptq4dm.time_steps)

# %% tags=["explorer"]
explore.normal_explorer(results)

# %% [markdown] tags=["quoted"]
# What the paper reports (quoted, not measured here): ImageNet at 64 pixels, W8A8, FID 33.15 for
# pure noise, 128.63 for raw images, 26.19 for uniform steps and 24.26 for normal ones, beside
# 21.63 in full precision. FID is lower for better sets of pictures. An independent implementation
# found normal steps worse than uniform ones, on ImageNet and on CIFAR-10.

# %% [markdown]
# ### Which range, and what else may be rounded
#
# The paper also asks what a range should make small. It compares $L_{2.4}$, $L_1$, cosine distance
# and Kullback-Leibler divergence, all else equal. Here each tries the same 100 widths.
# <!-- numbers: 100 -->

# %% tags=["nbval-unit-db"]
explore.metrics_table(more.frames["metrics"])

# %% [markdown]
# *Chained* is how the published code goes about it: a layer's range is set when the layers before
# it are quantized already. This library sets each on exact inputs, unless asked:
# `recipe("ptq4dm", chained=True)`. The code has a slip, too. It counts steps from the noise where
# the network counts from the picture, so noisy states are told a late time. Does it matter?

# %%
for verdict in (*checks.chaining(more.frames["metrics"]), checks.pairing(more.frames["pairing"])):
    print(verdict)

# %% [markdown]
# And it rounds what the sampler hands on, $x_{t-1}$, to 8 bits, the network staying exact. (With
# $\eta = 0$ that is its mean, and there is no variance to round.)

# %%
tolerated = measured.halves(frames["rounded"])
tolerated

# %% [markdown]
# ## 3. EDA-DM: ask the network which steps differ
#
# *Picture.* Steps are places on a path through the network's middle. Where many lie close, one
# sample speaks for many; where one lies apart, nobody speaks for it. *Words.* Count neighbours,
# add how different a step is from all others, and share out the samples in proportion.
# *Equation* (reconstructed from the published code):
#
# $$n_i \propto \tilde D_i + \lambda \tilde V_i,\quad
# D_i = \#\{j \ne i : \mathrm{mean}(F_i - F_j)^2 \le r\},\quad
# V_i = \textstyle\sum_{j} (1 - \cos(F_i, F_j))$$
#
# $F_i$ is the input of the middle block's attention at step $i$; the cosine is taken over
# channels and summed over runs and pixels; the tilde scales to $[0, 1]$. $\lambda = 1.2$ is the
# script's for CIFAR-10. Its $r$ is a fixed number that fits its network's features; here it is
# the median of all distances.
#
# ```python
# dqlab.quantize(pipe, "eda-dm", weights=4, activations=8)
# ```

# %%
explore.path(results)

# %% [markdown]
# Both methods choose again, live. The counts must be the stored ones, sample for sample.

# %% tags=["method-ptq4dm", "method-eda-dm"]
for slug in measured.METHODS:
    now = cal.counts_of(pipe, slug, measured.Plan().sampler, states, samples=160)
    was = cal.counts(frames["picks"], slug, 20)
    print(f"{slug}: {now}, as stored: {now == was}")

# %%
top = measured.absmax_of(frames["drift"])
every, alone = cal.worst_clip(top, range(20)), cal.worst_clip(top, [0])
explore.rug(frames["picks"], f"Who picks what. Blind spot of step 0 alone: a layer that reaches "
            f"{alone:.2f} times as far later; of all steps: {every:.2f}.")  # fmt: skip

# %% [markdown]
# ### The same picture again
#
# The strip with both methods on, and evenly spread steps beside them.

# %%
means = cal.per_step(frames["powers"]).groupby("source")["db"].mean()
words = ", ".join(f"{name} {means[name]:.1f} dB" for name in ("uniform", *measured.METHODS))
explore.strips(results, ["uniform", *measured.METHODS, "clean images"],
               f"Averaged over steps: {words}.")  # fmt: skip

# %% [markdown]
# ### Layers inside a block
#
# EDA-DM's second idea is about learning. Fit a block's output alone, and the layers inside may
# drift apart from full precision, as long as their errors cancel on the calibration states. So
# every inner layer answers for itself:
#
# $$\mathcal L = \ell(\hat z, z) + \lambda_m \textstyle\sum_l \ell(\hat y_l, y_l)$$
#
# Four residual blocks, each fitted by itself on the same states, with and without
# ($\lambda_m = 0.8$ and 0):

# %%
explore.block_table(frames["block"])

# %%
show.source(eda_dm.fine_grained_loss)

# %% [markdown]
# The first block again, live and in a fifth of the steps, on plain states of the recorded runs.

# %% tags=["method-eda-dm-layers"]
short = measured.block_frame(pipe, states[::4], held_out, iterations=60)
inner = short.pivot(index="layer", columns="fit", values="error").drop("block")
for layer, error in inner.iterrows():
    closer = error["with layer losses"] < error["block loss"]
    print(f"{layer}: closer to full precision with layer losses: {closer}")

# %% [markdown]
# A block alone says nothing about the network. So all of it was learned, once with the losses of
# inner layers and once without, on the same states. Weights have 4 bits, activations 8.

# %%
whole = ph.stored.load(learned.NAME)
whole

# %%
explore.fits_table(whole.frames["units"], whole.frames["seconds"])

# %%
fitted = learned.fit_verdict(whole.frames["units"])
fitted

# %% [markdown]
# Errors here are a unit's own, on calibration states, with what the learned units before it feed
# it. *Deciding* is the last step: roundings are learned soft, between two levels, and then go to
# the nearer one. The published code takes no unit back, and neither does this library.

# %% [markdown] tags=["quoted"]
# What the paper reports (quoted, not measured here): Stable Diffusion on MS-COCO with a quarter of
# the size, 1.83 times the speed, and a CLIP score lower by 0.05 (its abstract).

# %% [markdown]
# ### The ledger
#
# The same rows close every notebook of this series. *Paired error* compares each picture with the
# one that full precision paints from the same seed. The first three rows learn nothing: each
# method has its own set and its own search for ranges. The last two learn rounding and step sizes
# on EDA-DM's set; *block loss* is the same method without the losses of inner layers.

# %%
ledger_table(whole.frames["ledger"])

# %% [markdown]
# ## 4. What reproduces here
#
# A claim counts as reproduced from the margin in the fourth column on, if its interval is clear
# of zero (of one, for ratios).

# %%
claims = measured.claims(frames) | checks.claims(more.frames["metrics"])
claims |= learned.claims(whole.frames["powers"])
explore.claims_table(claims)

# %% [markdown]
# Evenly spread steps are hard to beat on this network. One reason may be that twenty steps are few
# and every one of them is cheap to include; most settings of the papers have a hundred and more.
#
# Rounded states change pictures one by one. The paper judges sets of pictures by FID, which does
# not ask whether they are the same ones.
#
# Not measured here: sets of pictures by FID, samplers with noise of their own and with thousands
# of steps, and what rounding the variance does, for this sampler has none. EDA-DM's tables of
# results were not at hand, so few of its rows have a figure beside them.
#
# ## Exercises
#
# Replace `raise NotImplementedError()`, run, then run the check below it.

# %%
show.exercise(
    "The blind spot",
    "absmax [layers, T] holds each layer's reach at each step. Write worst_clip(absmax, picked): "
    "over layers, the largest ratio of a layer's reach on all steps to its reach on the picked.",
    minutes=10,
    difficulty=3,
    hints=["absmax[:, picked] keeps the picked steps.", "One ratio per layer, then the worst."],
)


# %% tags=["exercise"] exercise="worst-clip"
def worst_clip(absmax, picked):
    """The worst ratio over layers."""
    ### BEGIN SOLUTION
    return float((absmax.amax(1) / absmax[:, list(picked)].amax(1)).max())
    ### END SOLUTION


# %% tags=["check"] exercise="worst-clip"
check = show.Check("the blind spot")
reach = torch.tensor([[100.0, 50.0, 90.0], [1.0, 0.5, 4.0]])


@check.case("with all steps picked it is 1", "Nothing is cut off then.")
def _(answer):
    return abs(answer(reach, [0, 1, 2]) - 1) < 1e-6


@check.case("more picks never make it worse", "The reach on more steps is never smaller.")
def _(answer):
    return answer(reach, [1, 0]) <= answer(reach, [0]) + 1e-6


@check.case("a small layer that peaks elsewhere is seen", "Each layer has a range of its own.")
def _(answer):
    return abs(answer(reach, [0]) - 4) < 1e-6


check(worst_clip)


# %% tags=["mistake"] exercise="worst-clip" why="averages over the picks: more picks can hurt"
def worst_clip(absmax, picked):
    return float((absmax.amax(1) / absmax[:, list(picked)].mean(1)).max())


# %% tags=["mistake"] exercise="worst-clip" why="one range for all layers hides the small one"
def worst_clip(absmax, picked):
    return float(absmax.max() / absmax[:, list(picked)].max())


# %% [markdown] tags=["solution"]
# A layer that reaches 4 beside one that reaches 100 disappears in a common range, and is ruined
# all the same.
# <!-- numbers: 100 -->

# %%
show.exercise(
    "Drawn steps",
    "z holds standard normal numbers. Write step_of(z, T, mu, sigma): sampler steps, 0 the "
    "noisiest, of PTQ4DM's draw t = floor((mu + sigma z) T), clamped, which counts from the "
    "picture.",
    minutes=10,
    difficulty=2,
    hints=["Clamp to 0 and T - 1.", "Step 0 is t = T - 1."],
)


# %% tags=["exercise"] exercise="drawn-steps"
def step_of(z, T, mu, sigma):
    """Sampler step of each draw."""
    ### BEGIN SOLUTION
    return T - 1 - ((mu + sigma * z) * T).floor().clamp(0, T - 1).long()
    ### END SOLUTION


# %% tags=["check"] exercise="drawn-steps"
check = show.Check("drawn steps")
draws = torch.tensor([0.0, -9.0, 9.0, 0.5])


@check.case("z = 0 with mu = 0.25 of 20 is t = 5, step 14", "Count from the picture, then turn.")
def _(answer):
    return answer(draws, 20, 0.25, 0.1).tolist()[0] == 14


@check.case("what falls outside gathers at both ends", "Clamp; drop nothing.")
def _(answer):
    return answer(draws, 20, 0.25, 0.1).tolist() == [14, 19, 0, 13]


check(step_of)


# %% tags=["mistake"] exercise="drawn-steps" why="does not turn t round: the published pairing bug"
def step_of(z, T, mu, sigma):
    return ((mu + sigma * z) * T).floor().clamp(0, T - 1).long()


# %% tags=["mistake"] exercise="drawn-steps" why="drops what falls outside"
def step_of(z, T, mu, sigma):
    t = ((mu + sigma * z) * T).floor()
    return T - 1 - t[(t >= 0) & (t < T)].long()


# %% [markdown] tags=["solution"]
# The published code compares t with a counter that starts at the noise, so its sets are turned
# round. This library follows the paper; what the slip costs stands above.

# %%
show.exercise(
    "Density",
    "distances [T, T] holds mean squared distances between steps. Write density(distances, r): "
    "for each step, how many other steps lie within r.",
    minutes=5,
    difficulty=1,
    hints=[
        "Compare the matrix with r and count along a row.",
        "A step is no neighbour of itself.",
    ],
)


# %% tags=["exercise"] exercise="density"
def density(distances, r):
    """Neighbours of each step."""
    ### BEGIN SOLUTION
    return (distances <= r).sum(1) - 1
    ### END SOLUTION


# %% tags=["check"] exercise="density"
check = show.Check("density")
apart = torch.tensor([[0.0, 1.0, 9.0], [1.0, 0.0, 8.0], [9.0, 8.0, 0.0]])


@check.case("two close steps and one apart", "The third has no neighbour at r = 2.")
def _(answer):
    return answer(apart, 2.0).tolist() == [1, 1, 0]


@check.case("a large radius makes all neighbours", "Two others each.")
def _(answer):
    return answer(apart, 10.0).tolist() == [2, 2, 2]


check(density)


# %% tags=["mistake"] exercise="density" why="counts the step itself"
def density(distances, r):
    return (distances <= r).sum(1)


# %% tags=["mistake"] exercise="density" why="counts those beyond the radius"
def density(distances, r):
    return (distances > r).sum(1)


# %% [markdown] tags=["solution"]
# The radius depends on the scale of the features, so it does not carry over between networks;
# here it is the median distance.

# %%
show.exercise(
    "Share out",
    "Write share_out(scores, N): whole numbers in proportion to scores that always add up to N. "
    "Round each; give what is missing to the largest first, take what is too much from the end.",
    minutes=15,
    difficulty=3,
    hints=["torch.round gives the first guess.", "Then one by one until the sum is N."],
)


# %% tags=["exercise"] exercise="share-out"
def share_out(scores, N):
    """Counts by step that add up to N."""
    ### BEGIN SOLUTION
    n = (N * scores / scores.sum()).round().long()
    order = n.argsort(descending=True, stable=True).tolist()
    for i in range(N - int(n.sum())):
        n[order[i % len(order)]] += 1
    for i in [i for i in reversed(range(len(n))) if n[i] > 0][: max(0, int(n.sum()) - N)]:
        n[i] -= 1
    return n.tolist()
    ### END SOLUTION


# %% tags=["check"] exercise="share-out"
check = show.Check("share out")


@check.case("2 : 1 : 1 of 8 is 4, 2, 2", "Nothing to mend here.")
def _(answer):
    return answer(torch.tensor([2.0, 1.0, 1.0]), 8) == [4, 2, 2]


@check.case("four equal steps share 6 as 2, 2, 1, 1", "1.5 rounds to 2 each: two too many.")
def _(answer):
    return answer(torch.ones(4), 6) == [2, 2, 1, 1]


check(share_out)


# %% tags=["mistake"] exercise="share-out" why="rounds and leaves the sum to chance"
def share_out(scores, N):
    return (N * scores / scores.sum()).round().long().tolist()


# %% tags=["mistake"] exercise="share-out" why="rounds down and loses samples"
def share_out(scores, N):
    return (N * scores / scores.sum()).floor().long().tolist()


# %% [markdown] tags=["solution"]
# The published code has a case that stops and one that goes below zero; one rule that always
# adds up needs neither.

# %%
show.exercise(
    "A moving average",
    "Both methods average ranges over batches: r becomes 0.9 r + 0.1 r_batch, and starts with the "
    "first batch. Write moving(ranges): the range at the end.",
    minutes=5,
    difficulty=1,
    hints=["Start with ranges[0].", "Go through the others one by one."],
)


# %% tags=["exercise"] exercise="moving"
def moving(ranges):
    """The averaged range."""
    ### BEGIN SOLUTION
    found = ranges[0]
    for r in ranges[1:]:
        found = 0.9 * found + 0.1 * r
    return found
    ### END SOLUTION


# %% tags=["check"] exercise="moving"
check = show.Check("a moving average")


@check.case("1, 2, 4 come to 1.39", "1, then 1.1, then 1.39.")
def _(answer):
    return abs(answer([1.0, 2.0, 4.0]) - 1.39) < 1e-6


@check.case("equal batches change nothing", "The average of equals.")
def _(answer):
    return abs(answer([3.0, 3.0]) - 3) < 1e-6


check(moving)


# %% tags=["mistake"] exercise="moving" why="a plain mean"
def moving(ranges):
    return sum(ranges) / len(ranges)


# %% tags=["mistake"] exercise="moving" why="starts at zero"
def moving(ranges):
    found = 0.0
    for r in ranges:
        found = 0.9 * found + 0.1 * r
    return found


# %% [markdown] tags=["solution"]
# After four batches the first still weighs 72.9 %: shuffle the states, or the range is that of
# whichever steps came first.
# <!-- numbers: 72.9 -->
#
# ## Recap

# %%
for verdict in (drift, ruin, fewer, tolerated, fitted):
    print("-", verdict)
for claim in claims.values():
    print(f"- {claim.says}: {claim.outcome}")

# %% [markdown]
# Every value must land on one of $2^b$ levels, and the chooser of those levels must have seen
# every kind of state. What is left over: all states are seen, and one tensor still holds two
# populations. That is the topic of the next notebook, on shortcuts.
#
# ## References
#
# - Y. Shang and others, *Post-training Quantization on Diffusion Models*, CVPR 2023,
#   arXiv 2211.15736.
# - X. Liu and others, *Enhanced Distribution Alignment for Post-Training Quantization of Diffusion
#   Models*, 2024, arXiv 2401.04585.
# - X. Wei and others, *QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training
#   Quantization*, ICLR 2022, arXiv 2203.05740.
