"""The stages of training and their options, named as TRL names them; `--stage dpo --set dpo.beta=0.2` reaches them."""

from typing import Annotated, Literal, get_args

import msgspec

from toolbox.i18n import N_

StageName = Literal["pt", "sft", "rm", "dpo", "kto", "orpo", "simpo", "cpo", "ppo", "grpo"]
NAMES: tuple[StageName, ...] = get_args(StageName)
SUMMARIES: dict[StageName, str] = {
    "pt": N_("continued pre-training on plain text"),
    "sft": N_("supervised fine-tuning on conversations"),
    "rm": N_("a reward model, from pairs of answers"),
    "dpo": N_("preference for the better of two answers, held to a reference"),
    "kto": N_("preference from answers marked good or bad"),
    "orpo": N_("fine-tuning and preference at once, without a reference"),
    "simpo": N_("preference by mean likelihood, without a reference"),
    "cpo": N_("preference and likelihood of the better answer, without a reference"),
    "ppo": N_("learning from rewards for its own answers, with a value head"),
    "grpo": N_("learning from rewards for its own answers, compared within groups"),
}
"""What each is for, in a few words."""

Positive = Annotated[float, msgspec.Meta(gt=0, le=1e3)]
Weight = Annotated[float, msgspec.Meta(ge=0, le=1e3)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
Times = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Smoothing = Annotated[float, msgspec.Meta(ge=0, lt=0.5)]
"""The share of labels that are taken to be flipped."""


class Options(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True, tag_field="stage"):
    """What a stage takes beside the numbers of the loop; `stage` tells in a plan whose they are."""


class Sft(Options, frozen=True, tag="sft"):
    """Supervised fine-tuning."""

    loss_type: str = "cross_entropy"
    """A loss of each token: a plugin's `sft.NAME`."""


class Rm(Options, frozen=True, tag="rm"):
    """Reward model."""

    center_rewards_coefficient: Weight = 0.0
    """Pulls the sum of both rewards towards zero (arXiv:2312.09244, equation 2)."""


class Dpo(Options, frozen=True, tag="dpo"):
    """Direct preference optimisation."""

    beta: Positive = 0.1
    """How strongly the model is held to the reference; IPO's tau."""
    loss_type: str = "sigmoid"
    """A loss of each pair: one of `plugins.BUILT_IN`, or a plugin's `dpo.NAME`."""
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


class Rewarded(Options, frozen=True):
    """What stages take that learn from the model's own answers. A step takes a batch of questions, and trains on their
    answers, `per_device_train_batch_size` of them at once."""

    reward_funcs: list[str] = []
    """Names of reward functions, as exact_match or format:REGEX."""
    reward_model: str = ""
    """A run of the stage rm, or a folder that AutoModelForSequenceClassification reads."""
    reward_weights: list[float] = []
    """One for each of reward_funcs, then the reward model's; without any, all count 1."""
    temperature: Positive = 1.0


class Ppo(Rewarded, frozen=True, tag="ppo"):
    """Proximal policy optimisation, under the names of TRL's last PPOConfig; defaults are that one's but for the
    length and the temperature."""

    response_length: Tokens = 256
    """Tokens of an answer at most."""
    num_ppo_epochs: Times = 4
    """Times that the answers of a step are learnt from."""
    num_mini_batches: Times = 1
    """Optimizer steps each time."""
    kl_coef: Weight = 0.05
    """How strongly the model is held to the reference, token by token; 0: there is none."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    kl_target: Weight = 0.0
    """The KL of an answer that kl_coef is adapted to (arXiv:1909.08593, section 2.2); 0: kl_coef stays."""
    kl_horizon: Annotated[float, msgspec.Meta(gt=0)] = 10000.0
    """Answers over which kl_coef adapts."""
    cliprange: Positive = 0.2
    cliprange_value: Positive = 0.2
    vf_coef: Weight = 0.1
    gamma: Share = 1.0
    lam: Share = 0.95
    whiten_rewards: bool = False
    missing_eos_penalty: Weight = 0.0
    """Taken off the score of an answer that does not end."""


class Grpo(Rewarded, frozen=True, tag="grpo"):
    """Group relative policy optimisation, under the names of TRL's GRPOConfig, and with its defaults."""

    num_generations: Annotated[int, msgspec.Meta(ge=2, le=1024)] = 8
    """Answers to each question: a group."""
    max_completion_length: Tokens = 256
    """Tokens of an answer at most."""
    beta: Weight = 0.0
    """How strongly the model is held to the reference; 0: there is none."""
    epsilon: Positive = 0.2
    epsilon_high: Weight = 0.0
    """The upper bound of the ratio beyond 1; 0: as epsilon."""
    num_iterations: Times = 1
    """Optimizer steps on the answers of a step (the paper's mu)."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "dapo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    importance_sampling_level: Literal["token", "sequence"] = "token"
    """sequence: GSPO's ratio (arXiv:2507.18071)."""
    use_bias_correction_kl: bool = True
    """The KL is weighed by the ratio, so that its gradient is unbiased (arXiv:2512.02556)."""
    mask_truncated_completions: bool = False
    """Answers that do not end are not learnt from."""

    @property
    def response_length(self) -> int:
        return self.max_completion_length


AnyOptions = Sft | Rm | Dpo | Kto | Orpo | Simpo | Cpo | Ppo | Grpo
OPTIONS: dict[str, type[AnyOptions]] = {kind.__struct_config__.tag: kind for kind in get_args(AnyOptions)}
"""By stage; pt takes none."""

LEARNING_RATE = {
    "pt": 1 / 2, "sft": 1.0, "rm": 1 / 20, "dpo": 1 / 40, "kto": 1 / 40, "orpo": 1 / 20, "simpo": 1 / 40, "cpo": 1 / 40,
    "ppo": 1 / 10, "grpo": 1 / 10,
}  # fmt: skip
"""Share of the rate for supervised fine-tuning: with LoRA's 2e-4, DPO gets the usual 5e-6; with 1e-5 for all weights,
2.5e-7 (the DPO and SimPO papers' are 5e-7 to 1e-6), and GRPO its paper's 1e-6."""
SEQUENCES = {"rm": 2, "dpo": 2, "orpo": 2, "simpo": 2, "cpo": 2}
"""Sequences that a row becomes in a step, where it is not one."""
PASSES_BEFORE = {"dpo": 1, "kto": 2}
"""Forward passes over all rows before the first step, for the reference."""
GENERATED_AT_ONCE = 8
"""Answers written at once, as a multiple of the sequences that are trained on at once: there is no backward pass."""
