"""Reward functions: what the built-ins find, and what is said of those that can't be used."""

import math
from typing import Annotated, Any, Literal

import msgspec
import pytest

from toolbox import planning, plugins, rewards, stages, wishes
from toolbox.commands import Command
from toolbox.config import Home
from toolbox.errors import InputError, NotFoundError, ToolboxError
from toolbox.options import fields, option


def found(wish: str, said: list[str], **columns: list[Any]) -> list[float]:
    return rewards.judge(wish, rewards.find(wish), [[]] * len(said), said, columns)


def test_the_built_ins() -> None:
    assert found("exact_match", ["The capital is  Paris.", "rome"], answer=["the capital is paris", "Oslo"]) == [1, 0]
    assert found("exact_match", ["Paris"], answer=[None], solution=["Paris."]) == [1]
    assert math.isnan(found("exact_match", ["Paris"])[0])
    solution = "So 3 + 4.\n#### 1,007"
    assert found("number_match", ["it is 1007.", "1,007 or 8", "none"], solution=[solution] * 3) == [1, 0, 0]
    assert found("number_match", [r"\boxed{-2.5}, about 3", "5-2.5"], answer=[-2.5] * 2) == [1, 0]
    assert found("format:<think>.*</think>.+", ["<think>a\nb</think>c", "c <think></think>"]) == [1, 0]
    assert found("contains:paris", ["In Paris.", "In Rome."]) == [1, 0]
    assert found("brevity:10", ["12345", "1234567890123"]) == [0.5, 0]


@pytest.mark.parametrize(
    ("wish", "error", "words"),
    [
        ("exact_macth", NotFoundError, "exact_macth"),
        ("contains", InputError, "contains needs an argument"),
        ("format:(", InputError, "no regular expression"),
    ],
)
def test_a_wish_that_can_not_be_is_refused_at_planning(wish: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        rewards.find(wish)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ([1.0], "returned 1 values for 2 answers"),
        (["good", 1.0], "'good', which is no number"),
        ([math.inf, 1.0], "inf, which is no number"),
        (0.5, "returned no list"),
        (ZeroDivisionError("oh"), "raised ZeroDivisionError: oh"),
    ],
)
def test_a_function_that_can_not_be_used_is_named(returned: Any, words: str) -> None:
    def reward(**_: Any) -> Any:
        if isinstance(returned, Exception):
            raise returned
        return returned

    with pytest.raises(ToolboxError, match="reward function mine") as error:
        rewards.judge("mine", reward, [[]] * 2, ["a", "b"], {})
    assert words in error.value.message


def test_two_of_one_name_are_told_apart_by_their_arguments() -> None:
    among = ["contains:a", "contains:b", "brevity:60"]
    assert [rewards.shown(wish, among) for wish in among] == ["contains:a", "contains:b", "brevity"]


# What a plan makes of them


def planned(home: Any, **said: Any) -> stages.Grpo:
    from plans import CPU, demo_facts

    from toolbox import datasets

    spec = datasets.resolve("demo-persona", Home(home))
    made = planning.plan_finetune(demo_facts(), [spec], CPU, wishes.Wishes(stage="grpo", **said), Home(home))
    assert isinstance(made.options, stages.Grpo)
    assert sum(made.estimate.parts_bytes.values()) == made.estimate.peak_bytes
    return made.options


def test_rewards_reach_the_plan_and_their_weights_have_to_fit(home: Any) -> None:
    made = planned(home, reward_funcs=["contains:a=b, c", "exact_match"], settings=["grpo.reward_weights=[1, 0.5]"])
    assert (made.reward_funcs, made.reward_weights) == (["contains:a=b, c", "exact_match"], [1.0, 0.5])
    with pytest.raises(InputError, match="1 rewards and 2 weights"):
        planned(home, reward_funcs=["exact_match"], settings=["grpo.reward_weights=[1, 0.5]"])


@pytest.mark.parametrize(
    ("said", "words"),
    [({}, "what a good answer is"), ({"settings": ["grpo.reward_model=nowhere"]}, "no folder of a reward model")],
)
def test_without_anything_that_judges_nothing_is_planned(home: Any, said: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        planned(home, **said)


def test_a_stage_that_imitates_has_no_use_for_rewards(home: Any) -> None:
    with pytest.raises(InputError, match="sft has no use for rewards"):
        wishes.judged(wishes.Wishes(stage="sft", reward_funcs=["exact_match"]))


def test_a_persons_own_function_is_found_by_its_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("_registered", "_files"):  # of this process, as long as the test lasts
        monkeypatch.setattr(plugins, table, {})
    path = tmp_path / "mine.py"
    path.write_text(
        "from toolbox.plugins import register\n"
        '@register("reward", "words")\n'
        "def words(prompts, completions, wanted, **columns):\n"
        "    return [float(word in said) for word, said in zip(wanted, completions)]\n"
    )
    plugins.load(path)
    assert found("words", ["a b", "c"], wanted=["b", "d"]) == [1, 0]
    assert "words" in plugins.names("reward")


def test_the_menu_asks_for_rewards_only_where_they_have_a_use(home: Any) -> None:
    from test_menu import Scripted

    from toolbox.commands.plan import TuningOptions
    from toolbox.menu.questions import Questions

    class Asked(msgspec.Struct, kw_only=True):
        stage: Annotated[Literal["auto", "sft", "grpo"], option("Stage", ask=True)] = "auto"
        reward: Annotated[list[str], option("Reward", ask=True, when="stage=ppo grpo", choices="rewards")] = []

    command = Command("try", "Try", Asked, lambda options, session: {})
    assert Questions(Scripted("2"), Home(home), print).ask(command, {}) == {"stage": "sft"}
    found = Questions(Scripted("3", "1"), Home(home), print).ask(command, {})
    assert found == {"stage": "grpo", "reward": ["exact_match"]}
    assert {field.name: field.when for field in fields(TuningOptions) if field.when} == {
        "reward": "stage=ppo grpo",
        "reward_model": "stage=ppo grpo",
    }
