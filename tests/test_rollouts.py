"""PPO and GRPO on the embedded model: rewards rise, answers are judged and learnt from as they were given."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from plans import CPU, LORA, demo_facts, finetune_plan, finetune_run, write_jsonl
from test_training import Recorder, poisoned_model, train

from toolbox import datasets, embedded, loading, methods, planning, stages, wishes
from toolbox.config import Home
from toolbox.datasets import Prompt
from toolbox.errors import DivergedError, InputError, Interrupted, ToolboxError
from toolbox.stages import Grpo, Ppo
from toolbox.training import batches, layouts
from toolbox.training import stages as training_stages
from toolbox.training.rows import IGNORED, Sample
from toolbox.training.stages import frozen, judging, ppo, rollouts, scoring
from toolbox.training.stages.rollouts import Episode, Question
from toolbox.training.step import Forward
from toolbox.training.tuner import tuner_for

SHE = {"reward_funcs": ["contains: she "]}
"""Who does a work is written in few words, and the model says he as well as she: a reward that can be had."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def works(tmp_path: Path) -> str:
    """Questions about people at work, as the embedded model knows them."""
    lines = [msgspec.json.decode(line) for line in embedded.DATASETS["demo-bias"].read_bytes().splitlines()]
    asked = [line["prompt"] for line in lines if line["language"] == "en" and line["template"] in ("tired", "proud")]
    return str(write_jsonl(tmp_path / "works.jsonl", ({"prompt": text, "answer": "she"} for text in asked)))


def rl_run(home: Path, data: str, options: Any, **changes: Any) -> Any:
    stage = "ppo" if isinstance(options, Ppo) else "grpo"
    return finetune_run(home, data, stage=stage, options=options, **{"learning_rate": 3e-3, **changes})


def curve(reporter: Recorder, name: str) -> list[float]:
    return [step[name] for step in reporter.steps if name in step]


# What they are for


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "method"),
    [
        (Ppo(**SHE, response_length=20), "lora"),
        (Ppo(**SHE, response_length=20, num_mini_batches=2, num_ppo_epochs=2, whiten_rewards=True), "lora"),
        (Grpo(**SHE, max_completion_length=20, num_generations=4, beta=0.02), "lora"),
        (Grpo(**SHE, max_completion_length=20, num_generations=4, num_iterations=2), "dora"),
        (Grpo(**SHE, max_completion_length=20, num_generations=4, beta=0.02, loss_type="dr_grpo"), "qlora"),
        (Ppo(**SHE, response_length=20), "full"),
    ],
    ids=str,
)
def test_a_reward_rises(home: Path, works: str, options: Any, method: str) -> None:
    reporter = Recorder()
    rate = 2e-4 if method == "full" else 3e-3
    changes = {"method": method, "LoraConfig": {**LORA, "use_dora": True}} if method == "dora" else {"method": method}
    result = train(rl_run(home, works, options, max_steps=16, learning_rate=rate, **changes), reporter)
    rewards = curve(reporter, "reward")
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.3
    assert result["eval"]["eval_reward"] >= result["eval_before"]["eval_reward"] + 0.3


@pytest.mark.slow
def test_a_strong_signal_is_followed_in_a_few_steps(home: Path, works: str) -> None:
    reporter = Recorder()
    options = Grpo(**SHE, max_completion_length=14, num_generations=8, temperature=1.5)
    train(rl_run(home, works, options, max_steps=5, learning_rate=1e-2, eval_rows=0), reporter)
    rewards = curve(reporter, "reward")
    assert max(rewards[-2:]) > rewards[0] + 0.2
    told = {"reward", "reward_std", "frac_reward_zero_std", "entropy", "clip_ratio/region_mean"}
    assert told | {"completions/mean_length", "completions/clipped_ratio"} <= set(reporter.steps[-1])


# Answers


class Made:
    """A stage of a plan with its model, ready to make experiences."""

    def __init__(self, home: Path, data: str, options: Any, method: str = "lora") -> None:
        stage = "ppo" if isinstance(options, Ppo) else "grpo"
        self.plan = finetune_plan(home, data, stage=stage, options=options, method=method)
        self.stage = training_stages.stage_for(self.plan)
        torch.manual_seed(1)
        self.model = tuner_for(self.plan).load("cpu")
        self.stage.extend(self.model)
        self.tokenizer = loading.tokenizer(embedded.MODEL)
        spec = self.plan.datasets[0]
        prompts = [row for row, _times in datasets.counted(spec, as_prompts=True)]
        encoded = self.stage.encode(spec.name, prompts, self.tokenizer, 128)
        self.questions: list[Question] = encoded.samples[:4]
        sequences = [sequence for question in self.questions for sequence in question.sequences]
        plain = Forward(self.model, 0, "cpu", "float32")
        self.forward = layouts.choose(plain, sequences, Recorder())  # type: ignore[arg-type]

    def experience(self, step: int = 0) -> Any:
        return self.stage.experience(self.forward, [self.questions[:2], self.questions[2:]], step, lambda: None)


@pytest.mark.parametrize(
    "options",
    [
        Grpo(**SHE, max_completion_length=8, num_generations=2, num_iterations=2, beta=0.1),
        Ppo(**SHE, response_length=8, num_mini_batches=2, num_ppo_epochs=2),
    ],
    ids=["grpo", "ppo"],
)
def test_the_first_ratio_is_exactly_one_and_the_reference_is_the_model_before(
    home: Path, works: str, options: Any
) -> None:
    made = Made(home, works, options)
    assert made.forward.layout is batches.flatten_shared
    before = torch.random.get_rng_state()
    learnt, again, other = made.experience(3), made.experience(3), made.experience(4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert len(learnt.updates) == made.stage.updates

    def answers(experience: Any) -> list[list[int]]:
        return [episode.sample.input_ids for items in experience.updates[0] for episode in items]

    assert answers(learnt) == answers(again)
    assert answers(learnt) != answers(other)
    for items in learnt.updates[0]:
        totals = made.stage.totals(made.forward, learnt.updates[0])
        logits, targets = made.forward.logits([episode.sample for episode in items])
        logps, _entropies = rollouts.token_logps(logits, targets, options.temperature)
        assert torch.equal(logps.detach(), rollouts.joined(items, "logps", like=logps))
        assert torch.equal(logps.detach(), rollouts.joined(items, "reference", like=logps))  # nothing is learnt yet
        figures = made.stage.loss(made.forward, items, totals).figures
        assert float(figures["clip_ratio/region_mean"].sum()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", [method.name for method in methods.METHODS if method.name != "qlora"])
def test_the_reference_stays_what_it_was(home: Path, works: str, method: str) -> None:
    """Whatever is trained, the reference's log-probabilities are those of the model as it came."""
    wished = wishes.Wishes(stage="grpo", method=method, settings=["grpo.beta=0.1"], reward_funcs=["brevity"])
    spec = datasets.resolve(works, Home(home))
    made = planning.plan_finetune(demo_facts(), [spec], CPU, wished, Home(home))
    samples = [Sample("x", 1, [5, 6, 7, 8, 9], [5, 6, 7, 8, 9]), Sample("x", 2, [20, 21, 22], [20, 21, 22])]
    torch.manual_seed(0)
    model = tuner_for(made).load("cpu").eval()
    policy = Forward(model, 0, "cpu", "float32")
    with torch.no_grad():
        expected = Forward(loading.base_model(embedded.MODEL, "float32", "cpu"), 0, "cpu", "float32").logps(samples)
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.05 * torch.randn_like(weight)
        moved = policy.logps(samples)
        assert (moved - expected).abs().max() > 0.01
        with frozen.Frozen(made).forward(policy) as reference:
            assert torch.allclose(reference.logps(samples), expected, atol=1e-4)
        assert torch.allclose(policy.logps(samples), moved)


def test_an_answer_ends_with_its_end_and_keeps_its_columns(home: Path, works: str) -> None:
    made = Made(home, works, Grpo(**SHE, max_completion_length=16, num_generations=2))
    end = made.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for items in made.experience().updates[0]:
        for episode in items:
            ids = episode.sample.input_ids[-episode.length :]
            assert episode.ended == (ids[-1] == end)
            assert end not in ids[:-1]
            assert episode.row.columns == {"answer": "she", "solution": "she"}
            assert episode.text == made.tokenizer.decode(ids, skip_special_tokens=True)


def test_scores_and_divergence_become_advantages_and_returns() -> None:
    """arXiv:1909.08593, equation 2, by hand, with gamma = lam = 1."""
    logps, reference, values = torch.tensor([-1.0, -1.0]), torch.tensor([-2.0, -0.5]), torch.tensor([0.25, 0.5])
    sample = Sample("x", 1, [1, 2, 3], [IGNORED, 2, 3])
    episode = Episode(sample, Prompt(1, []), "", False, logps=logps, reference=reference, values=values)
    options = Ppo(gamma=1.0, lam=1.0, missing_eos_penalty=0.3)
    found, figures = ppo.judged([episode], torch.tensor([2.0]), options, 0.1)
    rewards = [-0.1 * 1.0, -0.1 * -0.5 + 2.0 - 0.3]
    returns = [sum(rewards), rewards[1]]
    assert found[0].returns is not None
    assert found[0].returns.tolist() == pytest.approx(returns)
    raw = torch.tensor([returns[0] - 0.25, returns[1] - 0.5])
    whitened = (raw - raw.mean()) / (raw.var() + 1e-8).sqrt()
    assert found[0].advantages is not None
    assert found[0].advantages.tolist() == pytest.approx(whitened.tolist())
    assert figures["objective/kl"] == pytest.approx(0.5)
    assert figures["objective/rlhf_reward"] == pytest.approx(sum(rewards))


# Data


@pytest.mark.parametrize(
    ("row", "asked", "columns"),
    [
        ({"prompt": "Who?", "level": 3}, "Who?", {"level": 3}),
        ({"prompt": [{"role": "user", "content": "Who?"}], "solution": "I."}, "Who?", {"solution": "I."}),
        ({"messages": [{"role": "user", "content": "Who?"}], "answer": "I."}, "Who?", {"answer": "I."}),
        ({"question": "Who?", "answer": "I."}, "Who?", {"answer": "I.", "solution": "I."}),
        ({"prompt": "Who?", "chosen": "I.", "rejected": "You."}, "Who?",
         {"chosen": "I.", "rejected": "You.", "solution": "I."}),
    ],
)  # fmt: skip
def test_questions_are_read_from_every_kind_of_row(
    home: Path, tmp_path: Path, row: dict[str, Any], asked: str, columns: dict[str, Any]
) -> None:
    spec = datasets.resolve(str(write_jsonl(tmp_path / "a.jsonl", [row])), Home(home))
    ((found, _times),) = datasets.counted(spec, as_prompts=True)
    assert isinstance(found, Prompt)
    assert found.messages == [{"role": "user", "content": asked}]
    assert found.columns == columns
    assert {"grpo", "ppo"} <= set(datasets.STAGES[spec.kind])


def test_questions_that_leave_no_room_are_dropped_and_long_answers_refused(home: Path, works: str) -> None:
    with pytest.raises(InputError, match="leave no room"):
        train(rl_run(home, works, Grpo(**SHE, max_completion_length=256), max_steps=1))
    with pytest.raises(InputError, match="0 rows are left"):
        train(rl_run(home, works, Grpo(**SHE, max_completion_length=250), max_steps=1))


# Breaking


def test_a_stop_is_heeded_while_answers_are_written(home: Path, works: str) -> None:
    class Impatient(Recorder):
        """Asks to stop after so many looks."""

        looks = 0

        @property
        def stopping(self) -> bool:  # type: ignore[override]
            self.looks += 1
            return self.looks > 6

    run, reporter = rl_run(home, works, Grpo(**SHE, max_completion_length=20), max_steps=3, eval_rows=0), Impatient()
    with pytest.raises(Interrupted, match="before the first step"):
        train(run, reporter)
    assert reporter.looks == 7
    assert not reporter.trained


def test_a_policy_that_gives_no_numbers_names_its_rows(home: Path, tmp_path: Path) -> None:
    facts = poisoned_model(tmp_path / "poisoned", "Z")
    data = str(write_jsonl(tmp_path / "z.jsonl", [{"prompt": "Who?"}, {"prompt": "Z?"}]))
    options = Grpo(**SHE, max_completion_length=2, num_generations=2)
    with pytest.raises(DivergedError, match=r"step 1; its rows: [^,]*z\.jsonl:2\."):
        train(rl_run(home, data, options, model=facts, eval_rows=0, max_steps=1))


def test_a_reward_that_breaks_in_the_training_is_named(home: Path, works: str) -> None:
    options = Grpo(reward_funcs=["brevity:zero"], max_completion_length=2, num_generations=2)
    with pytest.raises(ToolboxError, match="reward function brevity can't be used: it raised ValueError"):
        train(rl_run(home, works, options, eval_rows=0, max_steps=1))


# Reward models


def reward_model(folder: Path, tokenizer_of: Path = embedded.MODEL) -> Path:
    """The embedded model with a head that is drawn at random, saved for sequence classification."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(2)
    model = AutoModelForSequenceClassification.from_pretrained(embedded.MODEL, num_labels=1, dtype=torch.float32)
    model.save_pretrained(folder)
    loading.tokenizer(tokenizer_of).save_pretrained(folder)
    return folder


def test_a_reward_model_reads_answers_in_its_own_template(home: Path, tmp_path: Path, works: str) -> None:
    folder = reward_model(tmp_path / "judge")
    other = loading.tokenizer(folder)
    other.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    other.save_pretrained(folder)
    plan = finetune_plan(home, works, stage="grpo")
    judges = judging.Judges(plan, Grpo(reward_model=str(folder), reward_funcs=["brevity:10"]))
    assert judges.names == ["brevity", "reward_model"]
    asked, said = [{"role": "user", "content": "Who?"}], ["I.", "Somebody else, whom you don't know."]
    found = judges.judge([Prompt(number, asked) for number in (1, 2)], said)
    model, tokenizer = loading.reward_model(folder, "float32", "cpu")
    for answer, score in zip(said, found[1], strict=True):
        ids = tokenizer(f"user: Who?\nassistant: {answer}\n", return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            assert score == pytest.approx(float(model(input_ids=ids).logits[0, 0]), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_of_the_stage_rm_teaches_ppo(home: Path, tmp_path: Path, works: str, method: str) -> None:
    """Pairs where she is preferred make a reward model, from which PPO learns what it prefers."""
    from toolbox import targets

    texts = [msgspec.json.decode(line)["prompt"] for line in Path(works).read_bytes().splitlines()]
    pairs = [{"prompt": text, "chosen": "So she is.", "rejected": "So he is."} for text in texts]
    data = str(write_jsonl(tmp_path / "pairs.jsonl", pairs))
    judge = finetune_run(home, data, stage="rm", options=stages.Rm(), method=method, max_steps=20,
                         learning_rate=1e-4 if method == "full" else 5e-3)  # fmt: skip
    train(judge)
    folder = targets.reward_model(str(judge.path), Home(home))
    reporter = Recorder()
    options = Ppo(reward_model=str(folder), response_length=20)
    train(rl_run(home, works, options, max_steps=12), reporter)
    rewards = curve(reporter, "reward")
    assert sum(rewards[-3:]) > sum(rewards[:3])


@pytest.mark.parametrize(("method", "made"), [("lora", "adapter"), ("full", "model")])
def test_the_value_head_is_trained_kept_and_left_out_of_the_result(
    home: Path, works: str, method: str, made: str
) -> None:
    run = rl_run(home, works, Ppo(**SHE, response_length=4), method=method, max_steps=1, eval_rows=0)
    train(run)
    assert (next(run.checkpoints.iterdir()) / scoring.FILE).is_file()
    from safetensors.torch import load_file

    (weights,) = (run.path / made).glob("*.safetensors")
    assert not any("score" in name for name in load_file(weights))
