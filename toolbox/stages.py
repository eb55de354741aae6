"""The stages of training and their options, named as TRL names them; `--stage dpo --set dpo.beta=0.2` reaches them."""

from typing import Annotated, Literal, get_args

import msgspec

StageName = Literal["pt", "sft", "rm", "dpo", "kto", "orpo", "simpo", "cpo"]
NAMES: tuple[StageName, ...] = get_args(StageName)

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e3)]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1e3)]
Smoothing = Annotated[float, msgspec.Meta(ge=0, lt=0.5)]
"""The share of labels that are taken to be flipped."""


class Options(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="stage"):
    """What a stage takes beside the numbers of the loop; `stage` tells in a plan whose they are."""


class Rm(Options, frozen=True, tag="rm"):
    """Reward model."""

    center_rewards_coefficient: Weight = 0.0
    """Pulls the sum of both rewards towards zero (arXiv:2312.09244, equation 2)."""


class Dpo(Options, frozen=True, tag="dpo"):
    """Direct preference optimisation."""

    beta: Positive = 0.1
    """How strongly the model is held to the reference; IPO's tau."""
    loss_type: Literal[
        "sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot",
        "aot_unpaired", "apo_zero", "apo_down", "discopop",
    ] = "sigmoid"  # fmt: skip
    label_smoothing: Smoothing = 0.0
    reference_free: bool = False
    """The reference finds all answers equally likely, so none is computed."""
    discopop_tau: Positive = 0.05


class Kto(Options, frozen=True, tag="kto"):
    """Kahneman-Tversky optimisation."""

    beta: Positive = 0.1
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    desirable_weight: Weight = 1.0
    undesirable_weight: Weight = 1.0


class Orpo(Options, frozen=True, tag="orpo"):
    """Odds-ratio preference optimisation."""

    beta: Positive = 0.1
    """The odds ratio's weight beside the likelihood; the paper's lambda."""


class Simpo(Options, frozen=True, tag="simpo"):
    """Simple preference optimisation; the defaults are the paper's (arXiv:2405.14734, table 7)."""

    beta: Positive = 2.0
    simpo_gamma: Weight = 1.0
    """The margin that is aimed at."""
    label_smoothing: Smoothing = 0.0


class Cpo(Options, frozen=True, tag="cpo"):
    """Contrastive preference optimisation."""

    beta: Positive = 0.1
    loss_type: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    label_smoothing: Smoothing = 0.0
    cpo_alpha: Weight = 1.0
    """The likelihood's weight beside the preference."""


AnyOptions = Rm | Dpo | Kto | Orpo | Simpo | Cpo
OPTIONS: dict[str, type[AnyOptions]] = {kind.__struct_config__.tag: kind for kind in get_args(AnyOptions)}
"""By stage; pt and sft take none."""

LEARNING_RATE = {
    "pt": 1 / 2, "sft": 1.0, "rm": 1 / 20, "dpo": 1 / 40, "kto": 1 / 40, "orpo": 1 / 20, "simpo": 1 / 40, "cpo": 1 / 40,
}  # fmt: skip
"""Share of the rate for supervised fine-tuning: with LoRA's 2e-4, DPO gets the usual 5e-6; with 1e-5 for all weights,
2.5e-7 (the DPO and SimPO papers' are 5e-7 to 1e-6)."""
SEQUENCES = {"rm": 2, "dpo": 2, "orpo": 2, "simpo": 2, "cpo": 2}
"""Sequences that a row becomes in a step, where it is not one."""
PASSES_BEFORE = {"dpo": 1, "kto": 2}
"""Forward passes over all rows before the first step, for the reference."""
