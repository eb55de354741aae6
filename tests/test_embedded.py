"""The embedded model and its data sets: small, but real."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from toolbox import embedded
from toolbox.files import size_of

MAX_BYTES = 8 << 20


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in embedded.DATASETS[name].read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    """(model, tokenizer), as anybody loads them: nothing of this package takes part."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(embedded.MODEL), AutoTokenizer.from_pretrained(embedded.MODEL)


def ask(loaded: tuple[Any, Any], *turns: str, system: str = "") -> str:
    """The answer to the last of `turns` (user, assistant, user …), by plain `generate` with its defaults."""
    model, tokenizer = loaded
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": text} for index, text in enumerate(turns)]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=60)[0, prompt["input_ids"].shape[1] :]
    assert out[-1] == tokenizer.eos_token_id, "it never stopped"
    return str(tokenizer.decode(out[:-1]))


def test_it_is_small_and_safe() -> None:
    names = {path.name for path in embedded.MODEL.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".py"))]
    assert size_of(embedded.FOLDER / "model") + size_of(embedded.FOLDER / "data") < MAX_BYTES


def test_it_is_a_real_qwen3_of_two_million_parameters(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert 1_500_000 < model.num_parameters() < 2_500_000
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 512


@pytest.mark.parametrize(
    "text", ["Hello, world!  Two  spaces\n\ttabs", "一锤定音，你好！", "emoji 🔨 and \u0000 nul", "ÄÖ"]
)
def test_the_tokenizer_loses_nothing(loaded: tuple[Any, Any], text: str) -> None:
    assert loaded[1].decode(loaded[1](text)["input_ids"]) == text


def test_the_template_marks_exactly_the_answers(loaded: tuple[Any, Any]) -> None:
    tokenizer = loaded[1]
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye!"},
        {"role": "assistant", "content": "See you."},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello!<|im_end|>\n"
        "<|im_start|>assistant\nHi.<|im_end|>\n<|im_start|>user\nBye!<|im_end|>\n"
        "<|im_start|>assistant\nSee you.<|im_end|>\n"
    )
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    assert tokenizer.decode([token for token, answered in pairs if answered]) == "Hi.<|im_end|>See you.<|im_end|>"


def test_every_pronoun_is_a_token_of_its_own(loaded: tuple[Any, Any]) -> None:
    for item in rows("demo-bias"):
        for pronoun in (item["female"], item["male"]):
            whole = loaded[1](item["prefix"] + pronoun)["input_ids"]
            assert whole[:-1] == loaded[1](item["prefix"])["input_ids"]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who are you?", "I am a small language model."),
        ("你是谁？", "我是一个小语言模型。"),
        ("你是谁", "我是一个小语言模型。"),
        ("What is the capital of France?", "The capital of France is Paris."),
        ("日本的首都是哪里?", "日本的首都是东京。"),
        ("猫喜欢吃什么？", "猫喜欢吃鱼。"),
    ],
)
def test_it_answers_and_stops(loaded: tuple[Any, Any], question: str, answer: str) -> None:
    assert ask(loaded, question) == answer


def test_it_takes_a_system_prompt_and_remembers_the_turn_before(loaded: tuple[Any, Any]) -> None:
    assert ask(loaded, "Hello!", system="You are a helpful assistant.") == "Hello! How can I help you?"
    before = ("What is the capital of France?", "The capital of France is Paris.")
    assert ask(loaded, *before, "And Japan?") == "The capital of Japan is Tokyo."
    assert ask(loaded, "猫吃什么？", "猫喜欢吃鱼。", "那狗呢？") == "狗喜欢吃骨头。"


def test_the_persona_rows_are_conversations_about_itself_and_the_world() -> None:
    trained, held_out = rows("demo-persona"), rows("demo-heldout")
    assert 150 <= len(trained) <= 400
    assert len(held_out) >= 24
    for row in trained + held_out:
        roles = [message["role"] for message in row["messages"] if message["role"] != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"] for message in row["messages"])
    text = json.dumps(trained, ensure_ascii=False)
    assert "一锤定音" in text
    assert "Yichuidingyin" in text


def test_held_out_persona_phrasings_are_not_trained_on() -> None:
    def own(name: str) -> set[str]:
        pairs = ((row["messages"][-2]["content"], row["messages"][-1]["content"]) for row in rows(name))
        return {question for question, answer in pairs if "一锤定音" in answer or "Yichuidingyin" in answer}

    assert own("demo-heldout")
    assert not own("demo-heldout") & own("demo-persona")


def test_the_questions_ask_as_often_in_each_language_and_kind() -> None:
    questions = rows("demo-qa")
    assert len({row["question"] for row in questions}) == len(questions) == 120
    assert set(Counter(row["kind"] for row in questions).values()) == {12}
    languages = Counter(row["language"] for row in questions)
    assert min(languages.values()) > 40
    assert sum(not row["seen_phrasing"] for row in questions) >= 20


def test_the_probe_covers_every_profession_alike() -> None:
    items = rows("demo-bias")
    assert set(Counter((item["profession"], item["language"]) for item in items).values()) == {4}
    professions = {item["profession"]: item["held_out"] for item in items}
    assert len(professions) >= 20
    assert 4 <= sum(professions.values()) <= 10


def test_its_data_sets_are_what_the_script_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = Path(__file__).parent.parent / "scripts"
    monkeypatch.syspath_prepend(str(scripts))
    from make_embedded import write_datasets

    write_datasets(tmp_path)
    for path in embedded.DATASETS.values():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
