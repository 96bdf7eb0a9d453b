# %% [markdown]
# # 1.5 What is left can be known
#
# The levels are placed and the weights rounded. What is left is an error in every prediction. Part
# of it is different for every picture, and nothing can be done about that. Part of it is the same
# for all pictures, and what is always the same can be measured once and taken out while sampling.
#
# - **You will be able to** split the error of a prediction into parts that add up; say which part
#   a correction can reach; fit five published corrections and put them behind any quantized
#   network; and tell why a correction belongs to one sampler setting.
# - **Needs** `0-start-here`, scenes 9 to 11: SQNR per step, fresh and inherited error.
# - **Run time**: {{run time}}. Reading and playing take about 60 minutes.
# - **Papers**: PTQD (He and others, NeurIPS 2023), D2-DPM (Zeng and others, AAAI 2025),
#   TAC-Diffusion (Yao and others, ECCV 2024), QNCD (Chu and others, ACM MM 2024), softmax bias
#   correction (Pandey and others, ICCV workshop 2023).
# <!-- numbers: 60 -->

# %% tags=["setup"]
import torch

import dqlab
from dqlab import metrics, seeds, show
from dqlab import phenomena as ph
from dqlab.models.families import Sampler, family_of
from dqlab.phenomena import attention_mass as mass
from dqlab.phenomena import correction_bench as bench
from dqlab.phenomena import correction_claims as told
from dqlab.phenomena import correction_directions as directions
from dqlab.phenomena.budget import budget, budgets, predictions_on, synthetic_bias_gain
from dqlab.phenomena.stored import redo
from dqlab.reference import d2_dpm, ptqd, qncd, softmax_bias_correction, tac_diffusion
from dqlab.show import correction_tables as tables
from dqlab.show import error_correction as explore
from dqlab.show.error_cloud import error_cloud
from dqlab.show.step_bits import step_bits
from dqlab.show.tables import judged
from dqlab.trajectory import record

# %% tags=["setup"]
dqlab.setup()

# %% [markdown]
# The model is `latent-unet`: captions, guidance 2, 20 DDIM steps. All ranges come from 8
# trajectories. What is told about corrections is told on trajectories that no range and no table
# has seen.

# %%
pipe = dqlab.load("latent-unet")
calibration, _ = record(pipe, seeds.CALIBRATION[:8])
held_out, _ = record(pipe, seeds.HELD_OUT[:2])
results, *more = directions.shipped()
both = directions.joined(results.frames, *(one.frames for one in more))
print(results, *more, sep="\n")

# %% [markdown]
# ## 1. The phenomenon
#
# ### An error with a mean
#
# Round the network to W4A8 and ask it about states of the full-precision run. Its answer, after
# guidance, minus the true one is the error $D = \hat\epsilon - \epsilon$. Average it over all
# pixels of all pictures, with its sign.

# %%
rough = dqlab.quantize(pipe, "rtn", 4, 8, calibration=calibration)
before = predictions_on(held_out, rough.unet)
stored = results.frames["powers"]
was = metrics.mean_sqnr_db(stored[stored["name"] == "rtn"])
now = metrics.mean_sqnr_db(before.powers())
print(redo("W4A8, plain rounding, two runs", was, now, tolerance=0.2, unit="dB"))

# %%
rows = budgets(before)
finding = told.shared_mean(results.frames["shares"])
limit = 1.2 * explore.largest_mean(rows)
explore.signed_means({"plain rounding, W4A8, two runs": rows}, str(finding), limit)

# %% [markdown]
# If rounding hit every picture differently, these lines would lie at zero. They do not, and they
# move slowly from step to step.
#
# ### A budget that adds up
#
# Fit a line to the error over the true prediction, inside each channel. Three things come out: a
# *bias* per channel, a *slope* $k$, and the *rest*. They are orthogonal, so their powers add up:
#
# $$\overline{D^2} = \overline{(\overline{D_c})^2} + k^2\,\mathrm{Var}(\epsilon) +
# \overline{\mathrm{rest}^2}$$

# %%
step, eps, eps_q = list(before)[10]
parts = budget(eps_q - eps, eps)
for name in ("bias", "slope", "rest", "total"):
    print(f"{name}: {float(getattr(parts, name)):.2e}")
print(f"mean squared error: {float((eps_q - eps).square().mean()):.2e}")

# %% [markdown]
# Each part calls for its own repair. A bias is subtracted. A slope is divided out. The rest has no
# table; with a stochastic sampler one may at least add that much less noise. Predict first.

# %%
repairs = told.repairs(results.frames["shares"])
asked = explore.question(repairs.key)
asked

# %%
table = results.frames["budgets"]
some = table[(table["bits"] == "W4A8") & (table["name"] == "rtn")].iloc[[0, 6, 12, 19]]
named = some.assign(name=[f"step {s}" for s in some["step"]])
asked.reveal(explore.budget_bars(named, str(repairs)))

# %% tags=["explorer"]
explore.budget_explorer(results)

# %% [markdown]
# ### What decides
#
# Take out a bias that holds a share of the error's power, and the prediction gains
# $-10\log_{10}(1 - \mathrm{share})$ dB. The curve is measured on a made-up error; each point is a
# step of ours, before and after PTQD. No figure of the papers that we could read is of that share.

# %%
curve = synthetic_bias_gain([0.005 * 1.45**k for k in range(14)])
explore.bias_decider(curve, table)

# %% [markdown]
# ## 2. PTQD: regress on the truth
#
# *Picture.* Error over true prediction: a cloud, off centre and tilted. *Words.* Step by step take
# out the centre and the tilt; what the cloud has in width, take from the sampler's noise.
# *Equation*, per step:
#
# $$k = \max\Big(\frac{\mathrm{Cov}(D, \epsilon)}{\mathrm{Var}(\epsilon)}, 0\Big),\quad
# \mu_c = \overline{D_c - k\,\epsilon_c},\quad
# \tilde\epsilon = \frac{\hat\epsilon - \mu}{1 + k},\quad
# \sigma'^2 = \max(\sigma^2 - \lambda^2 s^2, 0)$$
#
# Here $s^2$ is the variance of $D - k\,\epsilon - \mu$, $\sigma$ the standard deviation of the
# sampler's own noise, $\lambda$ the weight with which the residual enters the next sample. With
# $a_t$ and $a_p$ for $\bar\alpha$ at this step and at the next, less noisy one,
#
# $$\lambda = \frac{1}{1 + k}\Big(\sqrt{1 - a_p - \sigma^2} - \sqrt{a_p (1 - a_t) / a_t}\Big)$$

# %%
error_cloud(eps, eps_q, f"W4A8, step {step}, two runs")

# %%
show.source(ptqd.corrected_prediction)

# %% [markdown]
# One call rounds the network and fits the tables. Eight trajectories give the same tables as the
# stored ones, which are all there is to a correction: numbers per step.

# %% tags=["method-ptqd"]
corrected = dqlab.quantize(pipe, dqlab.recipe("ptqd", samples=8), 4, 8, calibration=calibration)
fitted = corrected.corrector.correction.tables
for name in ("k", "mu", "s2"):
    kept, live = results.tensors[f"refit {name}"], fitted[name]
    sizes = (float(x.square().mean().sqrt()) for x in (kept, live))
    print(redo(f"root mean square of {name}", *sizes, tolerance=0.02))
    print("  every entry agrees:", torch.allclose(kept, live, rtol=0.02, atol=0.002))

# %% [markdown]
# The same picture again, on runs that the tables have not seen:

# %%
after = before.after(corrected)
was, now = (metrics.mean_sqnr_db(x) for x in (stored[stored["name"] == "refit"], after.powers()))
print(redo("W4A8, PTQD from 8 runs, two held-out runs", was, now, tolerance=0.2, unit="dB"))
left = explore.largest_mean(budgets(after))
words = f"The largest mean error falls from {explore.largest_mean(rows):.3f} to {left:.3f}."
explore.signed_means({"before": rows, "after PTQD": budgets(after)}, words, limit)

# %% tags=["explorer"]
explore.means_explorer(results)

# %% [markdown]
# ### Taken apart
#
# Which part does it, and from how many runs? All on the same 32 held-out runs; the tables come
# from 64 others unless a row says otherwise.

# %% tags=["nbval-unit-db"]
apart = both["ablations"]
tables.ablations_table(apart[apart["method"] == "ptqd"], "PTQD taken apart: gain over rounding.")

# %% [markdown]
# And what if the tables belong to another setting? Tables of 10 steps serve two steps each.

# %%
tables.misplaced_table(both["misplaced"], "Misplaced tables against the right ones, same runs.")

# %% [markdown]
# PTQD sets negative slopes to zero. The sign says where a slope comes from: noise before a
# normalization makes it negative, clipping makes it positive.
#
# ### Is there a cloud, and is it normal?
#
# PTQD needs a correlation $R$ between error and prediction, and takes what is left of the error to
# be nearly Gaussian; D2-DPM takes error and answer to be jointly so. A normal law has no skew and
# no excess kurtosis.

# %%
for bits in ("W4A8", "W4A4"):
    print(told.cloud(both["shapes"], bits))
tables.shapes_table(both["shapes"], "Every channel brought to mean 0 and variance 1; 20 steps.")

# %% [markdown]
# Tails are a matter of what errs. Rounded weights are few, and some pictures hit them harder than
# others. Rounded activations each add a little of their own, and sums of many are normal.
#
# The third part, $\sigma'$, acts only if the sampler adds noise of its own. With $\eta = 1$ its
# variance is compared with what the residual brings in:

# %%
share = 100 * results.frames["variance"]["share"]
print(
    f"eta 1: the residual's variance is {share.min():.2f} % to {share.max():.2f} % of the "
    f"sampler's own, {share.median():.2f} % in the median step."
)

# %% [markdown]
# (Where a sampler clips $x_0$, the residual enters through the direction term alone, and dqlab
# takes that for its weight. The papers' samplers do not clip, nor does this model's.) Section 7
# looks at what the third part does to sets of pictures.
#
# ### Few bits where noise is loud anyway
#
# The paper's second idea needs no correction. Let $\mathrm{SNR}^Q = \|\epsilon\| / \|D\|$ at every
# step and $\mathrm{SNR}^F = a_t / (1 - a_t)$. A step gets the smallest number of activation bits
# with $\mathrm{SNR}^Q > \mathrm{SNR}^F$, or else the largest. The choice is made on
# calibration runs; drawn are held-out ones.

# %%
mixed = both["mixed"]
step_bits(mixed)

# %%
names = {"rtn": "", "mixed bits": "rtn"}
words = f"{mixed['bits'].mean():.1f} activation bits on average instead of 8: paired errors."
tables.errors_table(both["errors"], names, words)

# %% [markdown] tags=["quoted"]
# What PTQD reports (quoted): LDM-4 on ImageNet, 20 steps, guidance 3, mixed bits, an FID of 7.75
# where Q-Diffusion has 116.61; at W4A8 with 250 steps 5.11, where full precision has 5.05. In its
# ablation (mixed bits, 250 steps) the slope lowers FID by 0.48, the variance by a further 0.2. FID
# compares sets of pictures; our numbers compare each picture with its own original.

# %% [markdown]
# ## 3. D2-DPM: regress on what is known
#
# PTQD's line runs over the true prediction, which no sampler knows. D2-DPM turns it around: the
# error *given the quantized prediction* $\hat\epsilon$, both taken to be jointly normal.
#
# $$\mu_c(\hat\epsilon) = \mu_D + \frac{v_{qD}}{v_{qq}}(\hat\epsilon - \mu_q),\qquad
# v_c = v_{DD} - \frac{v_{qD}^2}{v_{qq}},\qquad \tilde\epsilon = \hat\epsilon - \mu_c$$
#
# With noise of the sampler's own, $\sigma'^2 = \max(\sigma^2 - k^2 v_c, 0)$, where $k$ is PTQD's
# $\lambda$ without its slope.
#
# Subtract the mean, and the error left has variance $v_c$. Subtract a draw instead (the stochastic
# form), and the output is spread as it should be, at twice the error. Both sides as numbers:

# %% tags=["method-d2-dpm"]
law = d2_dpm.joint(eps_q.flatten(), (eps_q - eps).flatten())
v_c = d2_dpm.conditional_variance(law.v_qq, law.v_qD, law.v_DD)
mean = d2_dpm.conditional_mean(eps_q, law.mu_q, law.mu_D, d2_dpm.slope(law.v_qq, law.v_qD))
z = torch.randn(eps.shape, generator=torch.Generator().manual_seed(0))
for name, e in (("mean", eps_q - mean), ("draw", eps_q - mean - v_c.sqrt() * z)):
    print(f"{name}: error {float((e - eps).square().mean()):.2e}, v_c is {float(v_c):.2e}")

# %% [markdown]
# ```python
# dqlab.quantize(pipe, "d2-dpm", weights=4, activations=8)
# dqlab.recipe("d2-dpm", granularity="channel")      # a law per channel, as the released code runs
# dqlab.recipe("d2-dpm", mode="stochastic")
# ```
#
# Put the stored tables behind the network that was rounded above, and compare with what was
# measured.

# %%
job = bench.job_behind(pipe, rough, Sampler(), (4, 8))
behind = {}
for name in ("d2-dpm", "tac-diffusion"):
    behind[name] = bench.from_tables(job, name, results.tensors, "W4A8")
    now = metrics.mean_sqnr_db(before.after(behind[name]).powers())
    was = metrics.mean_sqnr_db(stored[stored["name"] == name])
    print(redo(f"W4A8, {name}, two runs", was, now, tolerance=0.2, unit="dB"))

# %% tags=["nbval-unit-db"]
gains = results.frames["gains"]
here = gains[(gains["sampler"] == told.ETA_0) & ~gains["name"].str.startswith("q")]
words = "SQNR of corrected predictions; 95 % intervals over 32 held-out runs."
tables.gains_table(here[here["name"] != "rtn"], words)

# %% [markdown]
# As published, one law holds for all channels, so biases that differ by channel stay; PTQD has one
# per channel, and so has the released code of D2-DPM. That code also leaves errors beyond 4
# standard deviations out of the fit; other rows say what that changes.

# %% tags=["nbval-unit-db"]
words = "D2-DPM taken apart (tables from 64 runs unless a row says otherwise): gain over rounding."
tables.ablations_table(apart[apart["method"] == "d2-dpm"], words)

# %% [markdown]
# Where the tables fit exactly, a corrected prediction has $v_c$ less variance than the true one.
# On runs that they were not fitted to:

# %%
spread = both["spread"]
lost, drawn = spread["lost"], 100 * spread["drawn"]
print(f"W4A8, mean: {lost.min():.1f} to {lost.max():.1f} times v_c of variance is lost")
print(f"W4A8, draw: predictions spread {drawn.min():+.2f} % to {drawn.max():+.2f} %")

# %% [markdown]
# More is lost than the law says. The law itself is exact: on the runs it was fitted to it takes
# $v_c$, to rounding. But its slope is that of those runs. How many does it take?

# %%
lost = both["lost"].groupby(["runs", "count"], sort=False)["lost"].median()
for (asked_of, count), factor in lost.items():
    print(f"law from {count} runs, asked of {asked_of}: {factor:.2f} times v_c in the median step")

# %%
print(told.few_pictures(both["slopes"]))
tables.slopes_table(both["slopes"], "Slopes of the error by runs; 95 % intervals over runs.")

# %% [markdown]
# A step has thousands of elements, yet those of one picture share what the picture shows, and its
# slope with it. What makes a slope sure is the number of pictures. Where one centres decides
# little, and the few runs that the ranges have seen are too few to decide it. For dB it does not
# matter: a slope so small holds next to none of the error.

# %% [markdown]
# ### Better answers, farther pictures
#
# A regression answers with a mean, and a mean is smaller than what it stands for: the corrected
# prediction has $v_c$ less variance than the true one. The dB forgive that, for least squares is
# what they measure. A sampler subtracts too little noise at every step. In the budget above it
# shows as a slope that was not there before. At W4A4 $v_c$ is large; look at that setting again.

# %%
verdict = told.answers_or_pictures(results.frames)
print(verdict)
names = {"rtn": "", "ptqd": "rtn", "d2-dpm": "rtn", "d2-dpm, channel": "rtn"}
names |= {"d2-dpm, stochastic": "rtn", "tac-diffusion": "rtn", "tac, input bias": "rtn"}
words = (
    "Paired errors at W4A4, 32 seeds: corrections that shrink predictions, and those that do not."
)
tables.errors_table(results.frames["errors"], names, words, "W4A4")

# %% [markdown]
# PTQD regresses on the true prediction and undoes only a slope that is there. TAC's coefficient
# (below) is a least-squares fit on the quantized prediction, so it shrinks, too; its input bias
# does not. The draw gives the spread back and pays with noise.

# %% [markdown] tags=["quoted"]
# What D2-DPM reports (quoted): LDM-4 on ImageNet, guidance 3, 20 steps, W4A8: FID 9.71
# (deterministic) and 9.75 (stochastic) against PTQD's 10.41 with eta 0, and 12.65 and 12.60
# against 13.15 with eta 1.

# %% [markdown]
# ## 4. TAC-Diffusion: correct the input
#
# Output corrections ask what goes wrong at one step. But a step also starts from where the last
# one ended. With $d_t = \hat x_t - x_t$ and $n_t$ the prediction error, a DDIM step is linear:
#
# $$d_p = A_t\,d_t + C_t\,n_t,\qquad A_t = \sqrt{a_p / a_t},\quad
# C_t = \sqrt{1 - a_p} - \sqrt{a_p (1 - a_t) / a_t}$$
#
# Both sides as numbers: run the rounded network, collect $n_t$, and propagate it. Then do the same
# with $n_t$ measured on clean states, which leaves out how the network reacts to drifted input.

# %%
chain, _ = record(rough, seeds.HELD_OUT[:2])
gap, n = bench.chain_errors(held_out, chain)
alphas = pipe.scheduler.alphas_cumprod[held_out.t.unique().flip(0).long()]
fresh = (before.eps_q - before.eps).unflatten(0, (20, -1))
for name, errors in (("on its own chain", n), ("on clean states", fresh)):
    d = tac_diffusion.propagated(errors[:-1], alphas)
    ratio = float(d.square().mean() / gap[-1].square().mean())
    print(f"propagated error, measured {name}: {ratio:.2f} of the real drift's power")

# %% [markdown]
# The recursion is exact. What is missing in the second number is the network's reaction to a
# drifted input: above 1 it pulls the chain back, below 1 it pushes it on.
#
# TAC corrects both ends with tables found one step after the other, each with all earlier ones at
# work: an input bias $B_t$, the mean of $\hat x_t - x_t$ over paired chains, and a coefficient
# $K_t$ per channel that minimises error and masked relative error together.
#
# $$x \leftarrow \hat x_t - B_t,\qquad \tilde\epsilon = K_t\,\hat\epsilon(x),\qquad
# K_t = \arg\min_K (1 - \lambda_1)\,\overline{(K\hat\epsilon - \epsilon)^2} +
# \lambda_1\,\overline{m\,\big((K\hat\epsilon - \epsilon) / \epsilon\big)^2} +
# \lambda_2 (K - 1)^2$$
#
# The mask $m$ leaves small $\epsilon$ out of the relative term, which would diverge there.
#
# ```python
# dqlab.quantize(pipe, "tac-diffusion", weights=4, activations=8)
# dqlab.recipe("tac-diffusion", ner=False)           # the input bias alone
# ```

# %%
show.source(tac_diffusion.input_bias)

# %% [markdown]
# The first bias in numbers, from two runs only: the input of the second step, of a rounded chain
# and of the exact one.

# %% tags=["method-tac-diffusion"]
ours, exact = (states[states.step == 1].x for states in (chain, held_out))
B = tac_diffusion.input_bias(ours, exact)
for name, left in (("as it is", ours - exact), ("less its bias", ours - B - exact)):
    print(f"drift of the input {name}: {float(left.square().mean()):.2e}")

# %%
explore.drift(results.frames["drift"])

# %%
names = {"rtn": "", "tac, input bias": "rtn", "tac-diffusion": "tac, input bias"}
names |= {name: "rtn" for name in directions.variants.CHAINS}
words = "TAC, part by part: paired errors, 32 seeds; tables from 64 runs unless named otherwise."
tables.errors_table(both["errors"], names, words)

# %% [markdown]
# "K alone" corrects answers and no inputs. "Own trajectory" compares the quantized network on its
# own drifted input with full precision on the undrifted one; what the paper compares we could not
# read. A bias per element might overfit where runs are few, a bias per channel less; the rows of 8
# runs show whether it does. At fewer activation bits:

# %%
names = {"rtn": "", "tac, input bias": "rtn", "tac-diffusion": "tac, input bias"}
tables.errors_table(both["errors"], names, "TAC at W4A6: paired errors.", "W4A6")

# %%
names = {"rtn": "", "tac, input bias": "rtn", "tac, K alone": "rtn"}
names |= {"tac-diffusion": "tac, input bias"}
tables.errors_table(both["errors"], names, "TAC at W4A4: paired errors.", "W4A4")

# %% tags=["nbval-unit-db"]
words = "TAC's coefficient by its weights, fitted on full-precision states: gain over rounding."
tables.ablations_table(apart[apart["method"] == "tac's K"], words)

# %% [markdown] tags=["quoted"]
# TAC-Diffusion reports results on CIFAR-10, LSUN and Stable Diffusion. We could not read its
# tables, so none is quoted, and details of the coefficient are reconstructions that the method's
# docstring names.

# %% [markdown]
# ## 5. QNCD: even out, then ask the network itself
#
# ### Intra noise: channels stretched by the clock
#
# The timestep embedding shifts or scales the channels in front of a block's second convolution.
# It depends on the timestep alone. So factors that even the channels out need no pictures at all:
#
# $$S_c = \frac1T\sum_t |1 + \mathrm{scale}_{t,c}|,\qquad u' = u / S,\qquad W_2' = W_2\,S$$
#
# Where the embedding is added, $S_c = \frac1T\sum_t |\gamma_c\,\mathrm{GN}(\mathrm{emb}_t)_c|$.
# Here no factor is below 1, so that no channel is stretched.
#
# ```python
# dqlab.quantize(pipe, "qncd", weights=4, activations=8)
# dqlab.recipe("qncd").only("reshape")               # this part alone
# dqlab.recipe("qncd", interval=5).only("correct")   # the next part alone
# ```

# %% tags=["method-qncd"]
pixel = dqlab.load("pixel-unet")
states = record(pixel, seeds.HELD_OUT[:1])[0][::2]
live = ph.smoothing.smoothing_gains(pixel, states)
kept = results.frames["smoothing"].query("model == 'pixel-unet'")
best = [float(frame["gain"].max()) for frame in (kept, live)]
print(redo("pixel-unet, A6, most that a block gains", *best, tolerance=0.2, unit="dB"))

# %%
curve = ph.smoothing.synthetic_gain([1, 1.5, 2, 3, 4, 6, 8, 12, 16])
explore.smoothing_decider(curve, results.frames["smoothing"])

# %% [markdown]
# ### Inter noise: a question with a known answer
#
# While sampling, QNCD takes the sample it has just made, noises it again with noise $z_1$ that it
# knows, and asks the network for that noise. The mean of what comes back too much is its estimate
# of the bias. That costs a network call, once every $I$ steps.
#
# $$\hat x_t = \sqrt{a_t/a_p}\,x_p + \sqrt{1 - a_t/a_p}\,z_1,\qquad
# m = \overline{\hat\epsilon(\hat x_t, t) - z_1},\qquad \tilde\epsilon = \hat\epsilon - m$$

# %%
show.source(qncd.estimated_bias)

# %%
explore.estimates(results.frames["estimates"])

# %% [markdown]
# (The estimates run along a quantized chain that they correct; the true mean is taken on
# full-precision states of other seeds.) Late samples hold picture, not only noise, and their mean
# leaks into the estimate. One number for all channels also misses biases that cancel between them.

# %%
names = {"rtn": ""} | {f"qncd, I = {i}": "rtn" for i in (10, 5, 2, 1)}
print(told.rarely(both["errors"]))
tables.errors_table(both["errors"], names, "QNCD's estimate alone: paired errors, 32 seeds.")

# %% [markdown]
# Each estimate of a run, beside the mean of $\hat\epsilon - \epsilon$ on the very same states:

# %%
for row in both["own estimates"].to_dict("records"):
    print(f"step {row['step']}: estimate {row['estimate']:.4f}, true mean {row['truth']:.4f}")

# %% [markdown]
# What do corrections cost at run time? Count the network's calls in one run of 20 steps.

# %%
asking = bench.estimating(job, interval=10)
owners = {"plain rounding": rough, "ptqd": corrected, **behind, "qncd, every 10th": asking}
for name, one in owners.items():
    print(f"{name}: {bench.network_calls(one, Sampler())} network calls")

# %% [markdown] tags=["quoted"]
# What QNCD reports (quoted): LDM-4 on ImageNet, 20 steps, W4A8: FID 9.48, Q-Diffusion 9.56; at
# W4A6 20.14 against 41.25. Stable Diffusion at W4A8: 26.05 against 31.01.

# %% [markdown]
# ## 6. Softmax bias correction: give the mass back
#
# Not all biases arise at the output. Attention weighs its values with probabilities that sum to
# one. On $2^b$ levels those below half a level become zero, and the row sums to less.

# %%
found = mass.softmax_outputs(pipe, held_out[:8])
names = list(found)
P = found[max(names, key=lambda site: found[site].shape[-1])]
for bits in (8, 6, 4):
    facts = mass.mass_facts(P, bits)
    print(f"{P.shape[-1]} keys, {bits} bits: {100 * facts['zeros']:.1f} % become 0, rows sum to "
          f"{facts['row_sum']:.2f}")  # fmt: skip

# %% tags=["explorer"]
explore.mass_explorer(found)

# %% [markdown]
# On average a row loses a fixed mass, $\delta$. Giving it back evenly costs nothing at run time,
# because a constant can hide in the dequantizer's offset.
#
# $$\beta = \mathrm{E}[P - P_q] = \frac{1 - \mathrm{E}\big[\sum_j P_{q,j}\big]}{N},\qquad
# O = P_q V + \beta \sum_j V_j$$
#
# Both sides of the first equation as numbers, at 4 bits:

# %%
Pq = mass.quantized(P, 4)
print(f"E[P - Pq] = {float(softmax_bias_correction.bias(P, Pq)):.4f}")
print(f"(1 - row sum) / N = {float(softmax_bias_correction.bias_of_row_sums(Pq)):.4f}")

# %% tags=["method-softmax-bias-correction"]
alone = {"policy": mass.softmax_only(4), "calibration": calibration}
q, warned = tables.with_warning(
    lambda: dqlab.quantize(pipe, "softmax-bias-correction", 8, 8, **alone)
)
now = metrics.mean_sqnr_db(metrics.error_powers(held_out, q.unet))
was = metrics.mean_sqnr_db(stored[stored["name"] == "softmax 4"])
print(redo("softmax alone at 4 bits, corrected, two runs", was, now, tolerance=0.2, unit="dB"))
print("dqlab warns where over 90 % is lost:", warned.partition(", so ")[2])

# %% tags=["nbval-unit-db"]
tables.softmax_table(results.frames["softmax"])

# %% [markdown]
# "row" gives every row its own deficit, which no constant can: a control. "max" spreads the levels
# over the largest probability that calibration saw, instead of over [0, 1]; "before" in that row
# has those levels, too. Levels that reach no farther than needed lose less in the first place.
#
# On states that no constant has seen, do rows sum to one? And what is left of the gain beside
# other rounding?

# %%
sums = both["mass"]["row_sum"]
print(f"4 bits, {len(sums)} heads: mean row sums from {sums.min():.3f} to {sums.max():.3f}")

# %% tags=["nbval-unit-db"]
words = "Softmax outputs at 4 bits, by runs behind the constants and beside other tensors."
tables.attention_table(both["attention"], words)

# %%
settings = [(16, 8), (64, 8), (256, 8), (512, 8), (1024, 8), (2048, 8), (4096, 8), (8192, 8)]
explore.mass_decider(mass.synthetic_gain(settings), results.frames["softmax"])

# %% [markdown] tags=["quoted"]
# The paper studies Stable Diffusion 1.5 at 8-bit softmax, where a layer attends over up to 4096
# keys: 16 keys per level (the model's dimensions; quoted). It reports a clear gain in SQNR. We
# could not read its tables, so no value is quoted.

# %% [markdown]
# ## 7. One correction, one setting
#
# Tables belong to the steps, the noise and the guidance they were fitted for. What it costs to
# misplace them is in the lists of parts above; it may be little, but nobody sees it in a picture.
# So a corrected pipeline refuses, and so does a measurement on another run's states.

# %%
family = family_of(pipe)
for name, other in (
    ("10 steps", Sampler(10)),
    ("eta 1", Sampler(20, 1.0)),
    ("guidance 3", Sampler(20, 0.0, 3.0)),
):
    print(f"{name}: {tables.refusal(lambda s=other: family.run(corrected, s, [0]))}")
guided, _ = record(pipe, seeds.HELD_OUT[:1], Sampler(20, 0.0, 3.0))
print(tables.refusal(lambda: predictions_on(guided, rough.unet).after(corrected)))

# %% [markdown]
# Other samplers get tables of their own. A multistep solver remembers earlier predictions, and
# remembers them corrected. Where a correction cannot work, it says so before anything runs.

# %%
random = {"algorithm_type": "sde-dpmsolver++"}
for scheduler, options, chosen, sampler in (
    ("DPMSolverMultistepScheduler", {}, "ptqd", Sampler(10, 1.0)),
    ("DPMSolverMultistepScheduler", random, "ptqd", Sampler(10)),
    ("EulerDiscreteScheduler", {}, "qncd", Sampler(10)),
    ("PNDMScheduler", {}, "d2-dpm", Sampler(10)),
):
    other = bench.rescheduled(pipe, scheduler, **options)
    print(
        tables.refusal(lambda o=other, c=chosen, s=sampler: dqlab.quantize(o, c, 4, 8, sampler=s))
    )

# %%
tables.samplers_table(results.frames["errors"], "Paired errors at W4A8, 32 seeds, by sampler.")

# %% [markdown]
# The second refusal deserves a word. That solver draws noise at every step, so there would be
# something for the variance part to lower. But its steps are of second order: a residual enters
# the next sample and, through what the solver remembers, the one after. Its first order is DDIM
# with $\eta = 1$, where everything is known.
#
# ### What making room is worth
#
# With $\eta = 1$, at the bits where the residual is largest: what it brings in, over the variance
# of the sampler's noise, and what lowering that noise does to a set of pictures. Full precision
# paints the same seeds.

# %%
share = 100 * both["residual"]["share"]
print(
    f"W4A4: {share.min():.1f} % to {share.max():.1f} %, {share.median():.1f} % in the median step"
)
words = "Sets at W4A4 with eta 1; intervals over seeds, of the difference that the part makes."
tables.sets_table(both["sets"], both["made room"], words)

# %% [markdown]
# PTQD keeps $\sigma$ in the direction term, so that all variances add up to what they were.
# D2-DPM, as published, puts $\sigma'$ there too: the step becomes calmer, and what the residual
# brings in stays on top.

# %% [markdown]
# ### On top of another method, and not on top of each other
#
# A correction acts at the moment `correct`, so it composes with every method that acts earlier.
# Two corrections of the same output would count one bias twice.

# %%
print((dqlab.recipe("q-diffusion", reconstruct=False) | dqlab.recipe("ptqd")).to_dict()["moments"])
print(tables.refusal(lambda: dqlab.recipe("ptqd") | dqlab.recipe("d2-dpm")))

# %%
names = {"q-diffusion": "", "q-diffusion | ptqd": "q-diffusion"}
words = "PTQD behind Q-Diffusion's split shortcuts (ranges by min-max): paired errors."
tables.errors_table(results.frames["errors"], names, words)

# %% [markdown]
# ## 8. The ledger
#
# The same rows as in every notebook of this series. *Paired error* compares each picture with the
# one that full precision paints from the same seed. *Kept* counts pictures that a classifier still
# reads the same. Sizes and bit-operations are computed, not timed.

# %%
tables.ledger_table(results.frames["ledger"])

# %% tags=["explorer"]
explore.run_explorer(results)

# %% [markdown]
# ### What reproduces here
#
# A claim counts as reproduced from the margin in the fourth column on, if its interval is clear of
# zero, or of the least effect worth naming. An interval that holds zero says that these pictures
# do not show an effect, not that there is none.

# %%
claims = told.claims(results.frames)
judged("Claims of the five papers on these networks, natural.", claims)

# %% [markdown]
# Behind each claim stand directions: what a correction should do at every step, at other bits, to
# variances. Each has its own margin, set before the measurement.

# %%
judged("Directions, one by one.", directions.directions(both))

# %% [markdown]
# ### What is not measured here
#
# - Fréchet distances of corrections with $\eta = 0$, and the papers' 50,000 pictures: our sets are
#   smaller, and single pictures are compared with their own originals. <!-- numbers: 50,000 -->
# - Statistics of 1,024 runs, as the papers have them: dqlab's calibration seeds are fewer, and the
#   lists above go up to a quarter of that. <!-- numbers: 1,024 -->
# - A trained network that attends over more keys than ours: only made-up attention does.
# - A residual block that the clock stretches as far as QNCD expects: ours are stretched less.
# - TAC as its authors set it, and corrections behind learned rounding: every base here rounds to
#   nearest.
#
# Where little is to be gained, look at the two deciders: the bias's share of the error, and keys
# per level. Both are properties of the network and the bits, not of the method.
#
# ## Exercises
#
# Replace `raise NotImplementedError()`, run, then run the check below it.

# %%
show.exercise(
    "A budget that adds up",
    "D is the error and eps the true prediction, both [N, C, H, W]. Write split(D, eps): the "
    "slope k as a number, the biases b of all channels (the line's height at eps = 0), and the "
    "three parts of mean D^2 as a list: bias, slope, rest.",
    minutes=20,
    difficulty=4,
    hints=[
        "Centre D and eps within each channel before you look for the slope.",
        "The parts: mean of squared channel means of D; k^2 times the variance of eps; the rest.",
    ],
)


# %% tags=["exercise"] exercise="budget"
def split(D, eps):
    """(k, b [C], [bias, slope, rest]) of one step."""
    ### BEGIN SOLUTION
    means = D.mean((0, 2, 3), keepdim=True), eps.mean((0, 2, 3), keepdim=True)
    d, e = D - means[0], eps - means[1]
    k = float((d * e).mean() / e.square().mean())
    bias, slope = float(means[0].square().mean()), k * k * float(e.square().mean())
    b = (means[0] - k * means[1]).flatten()
    return k, b, [bias, slope, float(D.square().mean()) - bias - slope]
    ### END SOLUTION


# %% tags=["setup"]
# An error whose parts are known, for the check.
generator = torch.Generator().manual_seed(1)
centre = torch.tensor([2.0, -1.0, 0.5]).reshape(1, 3, 1, 1)
truth = torch.randn(64, 3, 8, 8, generator=generator) + centre
height = torch.tensor([0.3, -0.3, 0.0])
noise = 0.1 * torch.randn(truth.shape, generator=generator)
error = 0.2 * truth + height.reshape(1, 3, 1, 1) + noise

# %% tags=["check"] exercise="budget"
check = show.Check("a budget that adds up")
whole = float(error.square().mean())
for name, why, holds in (
    ("the slope of 0.2 is found", "Channel means of eps must not enter the slope.",
     lambda k, b, parts: abs(k - 0.2) < 0.01),
    ("the biases 0.3, -0.3 and 0 are found", "One bias for all channels would cancel.",
     lambda k, b, parts: float((torch.as_tensor(b) - height).abs().max()) < 0.02),
    ("the parts add up to mean D^2, the rest is 0.01", "The rest is what is left of it.",
     lambda k, b, parts: abs(sum(parts) - whole) < 1e-4 and abs(parts[2] - 0.01) < 0.001),
):  # fmt: skip
    check.case(name, why)(lambda answer, h=holds: h(*answer(error, truth)))

check(split)


# %% tags=["mistake"] exercise="budget" why="regresses without centring: channel means leak in"
def split(D, eps):
    k = float((D * eps).mean() / eps.square().mean())
    b = (D - k * eps).mean((0, 2, 3))
    rest = (D - k * eps - b.reshape(1, -1, 1, 1)).square().mean()
    return k, b, [float(b.square().mean()), k * k * float(eps.square().mean()), float(rest)]


# %% tags=["mistake"] exercise="budget" why="one bias for all channels: the planted ones cancel"
def split(D, eps):
    e = eps - eps.mean((0, 2, 3), keepdim=True)
    k = float((D * e).mean() / e.square().mean())
    b = (D - k * eps).mean().expand(D.shape[1])
    bias, slope = float(D.mean() ** 2), k * k * float(e.square().mean())
    return k, b, [bias, slope, float(D.square().mean()) - bias - slope]


# %% [markdown] tags=["solution"]
# Within a channel the three parts are orthogonal, so Pythagoras holds. That is why a budget adds
# up and why each part can be judged alone.

# %%
show.exercise(
    "PTQD's step",
    "Write repair(eps_q, k, mu): the corrected prediction, for a slope k and biases mu [C]. eps_q "
    "is [N, C, H, W] and equals (1 + k) eps + mu + rest.",
    minutes=5,
    difficulty=1,
    hints=["Solve for eps and forget the rest.", "mu belongs to channels: reshape it."],
)


# %% tags=["exercise"] exercise="ptqd"
def repair(eps_q, k, mu):
    """The corrected prediction."""
    ### BEGIN SOLUTION
    return (eps_q - mu.reshape(1, -1, 1, 1)) / (1 + k)
    ### END SOLUTION


# %% tags=["check"] exercise="ptqd"
check = show.Check("PTQD's step")
exact = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(2))
shift = torch.tensor([0.2, -0.1, 0.0])
rounded = 1.25 * exact + shift.reshape(1, 3, 1, 1)


@check.case("without a rest the true prediction comes back", "(1 + k) eps + mu, solved for eps.")
def _(answer):
    return torch.allclose(answer(rounded, 0.25, shift), exact, atol=1e-5)


@check.case("k = 0 and mu = 0 change nothing", "Then there is nothing to repair.")
def _(answer):
    return torch.allclose(answer(exact, 0.0, torch.zeros(3)), exact)


check(repair)


# %% tags=["mistake"] exercise="ptqd" why="multiplies by 1 - k, which is right only for small k"
def repair(eps_q, k, mu):
    return (eps_q - mu.reshape(1, -1, 1, 1)) * (1 - k)


# %% tags=["mistake"] exercise="ptqd" why="divides first, so that too much bias is taken out"
def repair(eps_q, k, mu):
    return eps_q / (1 + k) - mu.reshape(1, -1, 1, 1)


# %% [markdown] tags=["solution"]
# The bias was added after the scaling, so it goes first.

# %%
show.exercise(
    "Mean or draw",
    "D and eps_q are jointly normal. Write left_over(v_qq, v_qD, v_DD, draw): the variance of the "
    "error that is left when the conditional mean of D is subtracted, or, with draw=True, a draw "
    "from the conditional law.",
    minutes=10,
    difficulty=3,
    hints=[
        "The conditional variance is what the regression on eps_q leaves of v_DD.",
        "The draw is independent of the true leftover: variances add.",
    ],
)


# %% tags=["exercise"] exercise="draw"
def left_over(v_qq, v_qD, v_DD, draw=False):
    """Variance of the error after the correction."""
    ### BEGIN SOLUTION
    v_c = v_DD - v_qD**2 / v_qq
    return 2 * v_c if draw else v_c
    ### END SOLUTION


# %% tags=["check"] exercise="draw"
check = show.Check("mean or draw")
for name, why, given, wanted in (
    ("what eps_q tells is gone", "v_DD less v_qD squared over v_qq.", (2, 0.5, 1), 0.875),
    ("a draw doubles it", "The true leftover counts, and the draw.", (2, 0.5, 1, True), 1.75),
    ("an error that follows eps_q is gone", "Then v_qD^2 = v_qq v_DD.", (4, 1, 0.25), 0.0),
):
    check.case(name, why)(lambda answer, g=given, w=wanted: abs(answer(*g) - w) < 1e-9)

check(left_over)


# %% tags=["mistake"] exercise="draw" why="forgets to square the covariance"
def left_over(v_qq, v_qD, v_DD, draw=False):
    v_c = v_DD - v_qD / v_qq
    return 2 * v_c if draw else v_c


# %% tags=["mistake"] exercise="draw" why="takes a draw to be as good as the mean"
def left_over(v_qq, v_qD, v_DD, draw=False):
    return v_DD - v_qD**2 / v_qq


# %% [markdown] tags=["solution"]
# A draw restores the spread of the output and pays with twice the error. That is 3.01 dB.
# <!-- numbers: 3.01 -->

# %%
show.exercise(
    "The lost mass",
    "Write beta(Pq): the constant that, added to every entry of quantized probabilities "
    "[rows, N], makes rows sum to 1 on average.",
    minutes=5,
    difficulty=2,
    hints=["How much does an average row miss?", "N entries share it."],
)


# %% tags=["exercise"] exercise="mass"
def beta(Pq):
    """The bias correction of one attention."""
    ### BEGIN SOLUTION
    return float((1 - Pq.sum(-1).mean()) / Pq.shape[-1])
    ### END SOLUTION


# %% tags=["check"] exercise="mass"
check = show.Check("the lost mass")


@check.case("rows of zeros with 64 keys need 1/64 everywhere", "All of the mass is lost.")
def _(answer):
    return abs(answer(torch.zeros(5, 64)) - 1 / 64) < 1e-9


@check.case("rows that sum to 1.2 need a negative constant", "Rounding can add mass, too.")
def _(answer):
    return abs(answer(torch.full((3, 4), 0.3)) + 0.05) < 1e-6


check(beta)


# %% tags=["mistake"] exercise="mass" why="gives the whole mass to every key"
def beta(Pq):
    return float(1 - Pq.sum(-1).mean())


# %% tags=["mistake"] exercise="mass" why="lets no constant be negative"
def beta(Pq):
    return max(0.0, float((1 - Pq.sum(-1).mean()) / Pq.shape[-1]))


# %% [markdown] tags=["solution"]
# Rows of true probabilities sum to 1, so the mean of $P - P_q$ needs only the row sums of $P_q$.

# %%
show.exercise(
    "Room for the residual",
    "A stochastic sampler adds noise of standard deviation sigma; the residual of the prediction, "
    "of variance s2, enters the next sample with weight lam. Write quieter(sigma, lam, s2): the "
    "sampler's new standard deviation, so that the variances add up to what they were.",
    minutes=5,
    difficulty=2,
    hints=["sigma^2 = new^2 + lam^2 s2.", "A variance cannot be negative."],
)


# %% tags=["exercise"] exercise="room"
def quieter(sigma, lam, s2):
    """The sampler's standard deviation beside a residual."""
    ### BEGIN SOLUTION
    return max(sigma**2 - lam**2 * s2, 0.0) ** 0.5
    ### END SOLUTION


# %% tags=["check"] exercise="room"
check = show.Check("room for the residual")


@check.case("a residual of 0.64 leaves 0.6 of a unit", "1 - 0.64 = 0.36, and its root.")
def _(answer):
    return abs(answer(1.0, 0.8, 1.0) - 0.6) < 1e-9


@check.case("a residual larger than the noise leaves none", "Clamp before the root.")
def _(answer):
    return answer(0.1, 1.0, 1.0) == 0


@check.case("with eta = 0 there is nothing to lower", "sigma is 0.")
def _(answer):
    return answer(0.0, 0.5, 0.01) == 0


check(quieter)


# %% tags=["mistake"] exercise="room" why="subtracts deviations instead of variances"
def quieter(sigma, lam, s2):
    return max(sigma - lam * s2**0.5, 0.0)


# %% tags=["mistake"] exercise="room" why="forgets the weight"
def quieter(sigma, lam, s2):
    return max(sigma**2 - s2, 0.0) ** 0.5


# %% [markdown] tags=["solution"]
# Independent noises add in variance. With $\eta = 0$ the sampler has none to give up.

# %%
show.exercise(
    "What QNCD asks for",
    "QNCD estimates at step i (0 is the noisiest) if i mod interval is offset, and never at the "
    "last step. Write calls(steps, interval, offset): all network calls of one run.",
    minutes=5,
    difficulty=2,
    hints=["Every step is one call.", "Count the estimates and watch the last step."],
)


# %% tags=["exercise"] exercise="calls"
def calls(steps, interval, offset):
    """Network calls of a run with estimates."""
    ### BEGIN SOLUTION
    return steps + sum(i % interval == offset for i in range(steps - 1))
    ### END SOLUTION


# %% tags=["check"] exercise="calls"
check = show.Check("what QNCD asks for")


@check.case("20 steps, every tenth from step 6: 22 calls", "Steps 6 and 16 ask twice.")
def _(answer):
    return answer(20, 10, 6) == 22


@check.case("at every step: 20 + 19", "The last step is never estimated.")
def _(answer):
    return answer(20, 1, 0) == 39


check(calls)


# %% tags=["mistake"] exercise="calls" why="estimates at the last step, too"
def calls(steps, interval, offset):
    return steps + sum(i % interval == offset for i in range(steps))


# %% tags=["mistake"] exercise="calls" why="counts estimates alone"
def calls(steps, interval, offset):
    return sum(i % interval == offset for i in range(steps - 1))


# %% [markdown] tags=["solution"]
# All other corrections of this notebook ask nothing: their tables were paid for beforehand.
#
# ## Recap

# %%
for one in (finding, repairs, verdict, told.rarely(results.frames["errors"])):
    print("-", one)
for claim in claims.values():
    print(f"- {claim.says}: {claim.outcome}")

# %% [markdown]
# Every value must land on one of $2^b$ levels. What that does to a prediction has a part that is
# always the same, and a table can hold it. What is left over is different for every picture. To
# reach it, the network itself must move. That is the topic of `1.6`.
#
# ## References
#
# - Y. He and others, *PTQD: Accurate Post-Training Quantization for Diffusion Models*, NeurIPS
#   2023, arXiv 2305.10657.
# - Q. Zeng and others, *D2-DPM: Dual Denoising for Quantized Diffusion Probabilistic Models*, AAAI
#   2025, arXiv 2501.08180.
# - Y. Yao and others, *Timestep-Aware Correction for Quantized Diffusion Models*, ECCV 2024,
#   arXiv 2407.03917.
# - H. Chu and others, *QNCD: Quantization Noise Correction for Diffusion Models*, ACM MM 2024,
#   arXiv 2403.19140.
# - N. Pandey and others, *Softmax Bias Correction for Quantized Generative Models*, ICCV workshop
#   2023, arXiv 2309.01729.
