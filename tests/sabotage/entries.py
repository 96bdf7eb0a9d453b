"""Which step of each method is replaced by what, and which tests must notice.

The cells that must notice carry the tag `method-<name>` in the notebook of the method's category.
"""

from __future__ import annotations

from dataclasses import dataclass

import naive


@dataclass(frozen=True)
class Entry:
    """One method's sabotage.

    Attributes:
        slug: of the method.
        replaced: "module:name" or "module:Class.name" -> what takes its place.
        tests: node ids; each must fail by an assertion.
        quick: its tests take a second or two, so they are part of `make test`.
        part: which of the method's ideas, where several are replaced one at a time.

    """

    slug: str
    replaced: dict[str, object]
    tests: tuple[str, ...]
    quick: bool = False
    part: str = ""

    @property
    def name(self) -> str:
        """Such as "eda-dm" or "eda-dm-layers"."""
        return "-".join(filter(None, (self.slug, self.part)))

    @property
    def tag(self) -> str:
        """Of the notebook cells that must turn red."""
        return f"method-{self.name}"


CORRECTION = "dqlab.methods.unet_correction"
TIME = "dqlab.methods.unet_time_information"
REFERENCE = "dqlab.reference"

ENTRIES = (
    Entry(
        "ptq4dm",
        {f"{REFERENCE}.ptq4dm:time_steps": naive.uniform_steps},
        ("tests/reference/test_ptq4dm_formulas.py::test_what_falls_outside_gathers_at_both_ends",),
        quick=True,
    ),
    Entry(
        "eda-dm",
        {f"{REFERENCE}.eda_dm:score": naive.equal_scores},
        ("tests/reference/test_eda_dm_formulas.py::test_two_clusters",),
        quick=True,
    ),
    Entry(
        "eda-dm",
        {f"{REFERENCE}.eda_dm:fine_grained_loss": naive.block_loss_alone},
        (
            "tests/reference/test_eda_dm_formulas.py::test_layer_losses_add_to_the_block_loss",
            "tests/methods/test_eda_dm.py::test_layer_losses_keep_inner_layers_close",
        ),
        part="layers",
    ),
    Entry(
        "q-diffusion",
        {"dqlab.methods.splitting:split_shortcuts": naive.whole_shortcuts},
        ("tests/methods/test_q_diffusion.py::test_exactly_the_up_blocks_shortcuts_are_split",),
    ),
    Entry(
        "tdq",
        {"dqlab.methods.step_networks:fit_networks": naive.static_steps},
        (
            "tests/methods/test_tdq.py::test_step_sizes_track_a_gaussian",
            "tests/methods/test_tdq.py::test_the_gain_over_a_static_step_is_what_theory_says",
        ),
    ),
    Entry(
        "tfmq-dm",
        {f"{TIME}.tfmq_dm:ReconstructTime.run": naive.rounded_to_nearest},
        ("tests/methods/test_tfmq_dm.py::test_tiar_halves_the_loss_of_rounding_to_nearest",),
    ),
    Entry(
        "qvd",
        {f"{TIME}.qvd:time_grids": naive.even_grid},
        (
            "tests/methods/test_qvd.py"
            "::test_skewed_features_get_a_log_grid_and_even_ones_do_not[4]",
        ),
    ),
    Entry(
        "qncd",
        {
            f"{CORRECTION}.qncd:Qncd.factors": naive.no_factors,
            f"{CORRECTION}.qncd:RunningBias.eps": naive.as_predicted,
        },
        (
            "tests/methods/test_qncd.py"
            "::test_smoothing_helps_where_the_embedding_stretches_channels[8.0-5.0]",
            "tests/methods/test_qncd.py::test_one_call_in_interval_steps_is_added[20-10]",
        ),
    ),
    Entry(
        "ptqd",
        {f"{CORRECTION}.ptqd:Sums.statistics": naive.no_statistics},
        (
            "tests/methods/test_ptqd.py"
            "::test_a_planted_slope_and_bias_are_gone_on_held_out_trajectories",
        ),
    ),
    Entry(
        "softmax-bias-correction",
        {f"{CORRECTION}.softmax_bias_correction:LostMass.delta": naive.nothing_lost},
        (
            "tests/methods/test_softmax_bias_correction.py"
            "::test_mass_is_given_back_and_the_prediction_is_nearer[head]",
        ),
    ),
    Entry(
        "d2-dpm",
        {f"{REFERENCE}.d2_dpm:conditional_mean": naive.no_mean},
        (
            "tests/methods/test_d2_dpm.py"
            "::test_a_planted_line_is_gone_on_held_out_trajectories[tensor]",
        ),
    ),
    Entry(
        "tac-diffusion",
        {
            f"{REFERENCE}.tac_diffusion:input_bias": naive.no_input_bias,
            f"{REFERENCE}.tac_diffusion:reconstruction_coefficient": naive.no_coefficient,
        },
        (
            "tests/methods/test_tac_diffusion.py"
            "::test_a_planted_drift_appears_as_bias_and_is_taken_out[element-0.0]",
            "tests/methods/test_tac_diffusion.py::test_a_planted_scale_is_taken_out_by_k",
        ),
    ),
    Entry(
        "binary-latent-diffusion",
        {f"{REFERENCE}.binary_latent_diffusion:clean_logit": naive.direct_logit},
        (
            "tests/reference/test_binary_latent_formulas.py"
            "::test_clean_probability_weighs_keeping_against_flipping",
        ),
        quick=True,
    ),
)
BY_NAME = {entry.name: entry for entry in ENTRIES}
