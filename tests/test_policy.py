"""Policy gradients: advantages and clipped losses against hand-computed values, and GRPO's loss against TRL's."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import finetune_plan

from toolbox import embedded, loading
from toolbox import stages as options_of
from toolbox.datasets import Prompt
from toolbox.stages import Grpo
from toolbox.training import stages as training_stages
from toolbox.training.rows import IGNORED, Sample
from toolbox.training.stages import policy, rollouts
from toolbox.training.stages.rollouts import Episode
from toolbox.training.step import Forward, means


def test_advantages_of_a_short_answer_by_hand() -> None:
    """arXiv:1506.02438, equation 16, written out for three tokens."""
    rewards, values, gamma, lam = torch.tensor([0.0, -0.1, 1.0]), torch.tensor([0.5, 0.4, 0.2]), 0.9, 0.8
    third = 1.0 - 0.2
    second = -0.1 + 0.9 * 0.2 - 0.4
    first = 0.0 + 0.9 * 0.4 - 0.5
    expected = [first + 0.72 * (second + 0.72 * third), second + 0.72 * third, third]
    advantages, returns = policy.gae(rewards, values, gamma, lam)
    assert advantages.tolist() == pytest.approx(expected)
    assert returns.tolist() == pytest.approx(
        [one + value for one, value in zip(expected, [0.5, 0.4, 0.2], strict=True)]
    )


def test_without_discount_the_returns_are_the_rewards_to_come() -> None:
    advantages, returns = policy.gae(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, -4.0, 0.5]), 1.0, 1.0)
    assert returns.tolist() == pytest.approx([6.0, 5.0, 3.0])
    assert advantages.tolist() == pytest.approx([-3.0, 9.0, 2.5])


def test_whitening() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])  # mean 3, variance 7
    assert policy.whiten(values).tolist() == pytest.approx([-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5])
    kept = policy.whiten(values, shift_mean=False)
    assert kept.mean() == pytest.approx(3.0)
    assert kept.tolist() == pytest.approx([3 - 2 / 7**0.5, 3 - 1 / 7**0.5, 3 + 3 / 7**0.5])
    assert policy.whiten(torch.tensor([4.0])).tolist() == [0.0]


def test_advantages_within_groups() -> None:
    rewards = torch.tensor([[1.0, 3.0], [4.0, 4.0], [math.nan, 2.0]])
    advantages, std = policy.grouped(rewards, "group")
    assert advantages[0].tolist() == pytest.approx([-1 / (2**0.5 + 1e-4), 1 / (2**0.5 + 1e-4)])
    assert advantages[1:].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert std[:, 0].tolist() == pytest.approx([2**0.5, 0.0, 0.0])
    assert policy.grouped(rewards, "none")[0][0].tolist() == [-1.0, 1.0]
    batch = float(rewards[~rewards.isnan()].std())
    assert policy.grouped(rewards, "batch")[0][0].tolist() == pytest.approx([-1 / (batch + 1e-4), 1 / (batch + 1e-4)])


def test_clipping() -> None:
    ratio, advantages = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]), torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    assert policy.clipped(ratio, advantages, 0.2, 0.3).tolist() == pytest.approx([-2.6, 3.0, -1.0, 1.6, -2.2])
    below, above = policy.is_clipped(ratio, advantages, 0.2, 0.3)
    assert (below.tolist(), above.tolist()) == ([0, 0, 0, 1, 0], [1, 0, 0, 0, 0])
    values, old, returns = torch.tensor([1.0, 0.1]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0])
    assert policy.clipped_value(values, old, returns, 0.2).tolist() == pytest.approx([0.5 * 1.8**2, 0.5 * 0.01])


def test_the_divergence_and_its_coefficient() -> None:
    logps, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.0])
    assert policy.kl(logps, reference, "k1").tolist() == [0.5, -1.0]
    expected = [math.exp(-0.5) + 0.5 - 1, math.e - 1 - 1]
    assert policy.kl(logps, reference, "k3").tolist() == pytest.approx(expected)
    assert policy.adapted(0.2, measured=6.6, target=6.0, answers=100, horizon=1000) == pytest.approx(0.2 * 1.01)
    assert policy.adapted(0.2, measured=60, target=6.0, answers=100, horizon=1000) == pytest.approx(0.2 * 1.02)
    assert policy.adapted(0.2, measured=0, target=6.0, answers=100, horizon=1000) == pytest.approx(0.2 * 0.98)


# Against TRL


CASES = [
    *(Grpo(loss_type=name, beta=beta, num_iterations=2, max_completion_length=12)
      for name in ("grpo", "bnpo", "dr_grpo", "dapo") for beta in (0.0, 0.1)),
    Grpo(loss_type="grpo", num_iterations=2, epsilon=0.01, epsilon_high=0.02, beta=0.2, temperature=0.7),
    Grpo(importance_sampling_level="sequence", num_iterations=2, epsilon=0.001, max_completion_length=12),
    Grpo(loss_type="grpo", num_iterations=1),
    Grpo(num_iterations=2, use_bias_correction_kl=False, beta=0.1),
    Grpo(loss_type="dapo", num_iterations=2, mask_truncated_completions=True, beta=0.1),
    Grpo(loss_type="grpo", num_iterations=2, mask_truncated_completions=True),
]  # fmt: skip


def noisy(model: Any, seed: int) -> Any:
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=generator)
    return made.eval()


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any, Any]:
    """(reference, the policy that answered, the policy that learns)."""
    torch.set_num_threads(1)
    reference = loading.base_model(embedded.MODEL, "float32", "cpu").eval()
    return reference, noisy(reference, 1), noisy(reference, 2)


def episodes() -> list[Episode]:
    prompts = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 9], [30, 31], [30, 31]]
    answers = [[11, 12, 13], [14, 15, 16, 17, 18], [19], [20, 21, 22, 23]]
    ended, advantages = [True, False, True, True], [1.5, -0.7, 0.0, -1.1]
    return [
        Episode(
            Sample("x", number, prompt + answer, [IGNORED] * len(prompt) + answer),
            Prompt(number, []), "", end, advantages=torch.full((len(answer),), advantage),
        )
        for number, (prompt, answer, end, advantage) in enumerate(zip(prompts, answers, ended, advantages, strict=True))
    ]  # fmt: skip


def noted(forward: Forward, made: list[Episode], name: str, options: Grpo) -> list[Episode]:
    return rollouts.noted(forward, [made], name, options.temperature)[0]


def theirs(made: list[Episode], options: Grpo) -> dict[str, torch.Tensor]:
    """The episodes as TRL's trainer takes them: prompts filled up on the left, answers on the right."""
    prompts = [
        [t for t, label in zip(e.sample.input_ids, e.sample.labels, strict=True) if label == IGNORED] for e in made
    ]
    answers = [[label for label in e.sample.labels if label != IGNORED] for e in made]
    long, longest = max(map(len, prompts)), max(map(len, answers))

    def right(rows: Any) -> torch.Tensor:
        return torch.tensor([list(row) + [0] * (longest - len(row)) for row in rows])

    mask = [[int(e.ended or not options.mask_truncated_completions)] * e.length for e in made]
    batch = {
        "prompt_ids": torch.tensor([[0] * (long - len(row)) + row for row in prompts]),
        "prompt_mask": torch.tensor([[0] * (long - len(row)) + [1] * len(row) for row in prompts]),
        "completion_ids": right(answers), "completion_mask": right(mask),
        "advantages": torch.stack([e.advantages[0] for e in made if e.advantages is not None]),
        "num_items_in_batch": torch.tensor(sum(map(sum, mask))),
    }  # fmt: skip
    if options.num_iterations > 1:
        batch["old_per_token_logps"] = right([e.logps.tolist() for e in made if e.logps is not None])
    if options.beta:
        batch["ref_per_token_logps"] = right([e.reference.tolist() for e in made if e.reference is not None])
    return batch


@pytest.fixture(scope="module")
def trainer(models: Any, tmp_path_factory: Any) -> Any:
    pytest.importorskip("trl")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    def make(options: Grpo) -> Any:
        config = GRPOConfig(
            output_dir=str(tmp_path_factory.mktemp("grpo")), use_cpu=True, bf16=False, report_to=[],
            per_device_train_batch_size=4, num_generations=2, beta=options.beta, loss_type=options.loss_type,
            epsilon=options.epsilon, epsilon_high=options.epsilon_high or None, num_iterations=options.num_iterations,
            temperature=options.temperature, max_completion_length=options.max_completion_length,
            use_bias_correction_kl=options.use_bias_correction_kl,
            importance_sampling_level=options.importance_sampling_level, gradient_checkpointing=False,
        )  # fmt: skip
        return GRPOTrainer(
            model=copy.deepcopy(models[2]), reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config, train_dataset=Dataset.from_list([{"prompt": "a"}] * 4),
            processing_class=loading.tokenizer(embedded.MODEL),
        )  # fmt: skip

    return make


@pytest.mark.slow
@pytest.mark.parametrize("options", CASES, ids=str)
def test_grpo_is_trls(options: Grpo, models: tuple[Any, Any, Any], trainer: Any, home: Path) -> None:
    reference, answered, learning = (Forward(model, 0, "cpu", "float32") for model in models)
    made = noted(reference, noted(answered, episodes(), "logps", options), "reference", options)
    its = trainer(options)
    its.model.eval()
    with torch.no_grad():
        expected = float(its._compute_loss(its.model, theirs(made, options)))
    stage = training_stages.stage_for(finetune_plan(home, stage="grpo", options=options))
    for micro in (4, 1):
        micro_batches = [made[begin : begin + micro] for begin in range(0, 4, micro)]
        with torch.no_grad():
            totals = stage.totals(learning, micro_batches)
            outcomes = [stage.loss(learning, batch, totals) for batch in micro_batches]
        assert sum(float(outcome.loss) for outcome in outcomes) == pytest.approx(expected, abs=1e-4)
    told, figures = {name: values[-1] for name, values in its._metrics["eval"].items()}, means(outcomes)
    names = ["clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean", "entropy"]
    if options.importance_sampling_level == "token":  # else TRL counts answers, and we their tokens
        for name in [*names, *(["kl"] if options.beta else [])]:
            assert figures[name] == pytest.approx(told[name], abs=1e-4), name


def test_every_kind_of_grpo_is_held_against_trl() -> None:
    known = {options.loss_type for options in CASES}
    assert known == {"grpo", "bnpo", "dr_grpo", "dapo"}
    assert options_of.OPTIONS["grpo"] is Grpo
