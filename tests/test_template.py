"""The template is one thing: training, chat, evaluation and both engines see the same tokens, and answers end."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from plans import finetune_plan
from serving_help import Server, plan, server, standin_interpreter
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from toolbox import datasets, embedded, inference, loading, merging, models, runs, templates
from toolbox.commands.conversing import ChatOptions, Conversation
from toolbox.config import Home
from toolbox.engines import ENGINES, SERVED, Launch
from toolbox.errors import InputError
from toolbox.merging.proof import _stops
from toolbox.plan import MergePlan, ServedAdapter
from toolbox.runs import Silent
from toolbox.serving import view
from toolbox.serving.batching.prompts import chat_ids
from toolbox.serving.protocol import ChatRequest
from toolbox.training import rows
from toolbox.training import run as train
from toolbox.ui import Terminal

SPECIAL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>",
)  # fmt: skip
CHATML = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
START = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
STYLES = {
    **{name: (templates.FOLDER / f"{name}.jinja").read_text("utf-8") for name in templates.known()},
    "chatml-default-system": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
    "{% for m in messages %}" + CHATML + "{% endfor %}" + START,
    "thinking": "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n{% if loop.last %}"
    "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% else %}" + CHATML + "{% endif %}{% endfor %}"
    + START
    + "{% if add_generation_prompt and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
    "llama2": "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% else %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
    "glm": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "no-end": "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}",
}  # fmt: skip
"""Written here, in the manner of the families: with and without marks, a system prompt, an end of their own."""
ENDS = {
    "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>", "plain": "</s>", "llama2": "</s>",
    "glm": "<|user|>", "no-end": "</s>",
}  # fmt: skip
"""What ends an answer, where it is not <|im_end|>."""
TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": " Who are you?\n"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "Really?"},
    {"role": "assistant", "content": "Yes, really."},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model as a base: no template, other special tokens, an eos_token that no template uses, a bos."""
    folder = tmp_path_factory.mktemp("bases") / "base"
    shutil.copytree(embedded.MODEL, folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer = loading.tokenizer(embedded.MODEL)
    tokenizer.add_tokens([token for token in SPECIAL if token not in tokenizer.get_vocab()], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    file = Tokenizer.from_file(str(path))
    file.post_processor = TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", tokenizer.bos_token_id)])
    file.save(str(path))
    model = loading.base_model(embedded.MODEL, "float32", "cpu")
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    return folder


def dressed(base: Path, folder: Path, style: str) -> Path:
    """A copy of the base with a template."""
    shutil.copytree(base, folder)
    (folder / "chat_template.jinja").write_text(STYLES[style], "utf-8")
    return folder


def served_ids(folder: Path, turns: list[dict[str, Any]]) -> list[int]:
    """The prompt as the engine that comes along makes it of a request, by its own code."""
    asked = msgspec.convert({"messages": turns}, ChatRequest)
    return chat_ids(loading.tokenizer(folder), asked)


def lmdeploy_ids(folder: Path, turns: list[dict[str, Any]]) -> list[int]:
    """The prompt as lmdeploy 0.18 makes it with `--chat-template hf`: rendered, then tokenised with special tokens."""
    tokenizer = loading.tokenizer(folder)
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return list(tokenizer(text, add_special_tokens=True)["input_ids"])


@pytest.mark.parametrize("style", STYLES)
def test_what_was_trained_is_what_chat_sends_and_what_engines_apply(base: Path, tmp_path: Path, style: str) -> None:
    folder = dressed(base, tmp_path / "model", style)
    tokenizer = loading.tokenizer(folder)
    sample = rows.encode_row("", datasets.Conversation(1, TURNS), tokenizer)
    learnt = [index for index, label in enumerate(sample.labels) if label != rows.IGNORED]
    answers = [index for index in learnt if index - 1 not in learnt]
    assert len(answers) == 2
    view.make(tmp_path / "engine", folder, [], ENGINES["lmdeploy"])
    for number, begin in enumerate(answers):
        asked = TURNS[: 2 * number + 2]
        prompt = sample.input_ids[:begin]
        assert served_ids(folder, asked) == prompt, "the engine that comes along"
        sent = inference.prompt_ids(tokenizer, asked)
        assert (sent[: len(prompt)] if style == "thinking" else sent) == prompt, "evaluate"
        if number or style != "thinking":
            assert sample.input_ids[: len(sent)] == sent, "a model asked not to think begins as it was trained to"
        if "bos_token" in STYLES[style]:
            assert prompt[0] == tokenizer.bos_token_id
            assert lmdeploy_ids(tmp_path / "engine" / SERVED, asked) == prompt, "lmdeploy"
    end = tokenizer.convert_tokens_to_ids(ENDS.get(style, "<|im_end|>"))
    for begin in answers:
        last = next(index for index in range(begin, len(learnt) + begin) if index + 1 not in learnt)
        if (style, begin) != ("no-end", answers[0]):
            assert sample.labels[last] == end, "the end is learnt"
    assert end in templates.stops(tokenizer, None), "and stops"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("template")
    with server(folder / "runs", plan(standin_interpreter(folder / "python"))) as up:
        yield up


@pytest.mark.parametrize("system", [TURNS[0]["content"], ""])
def test_chat_and_gateway_hand_the_engine_the_very_tokens_that_were_learnt(
    base: Path, tmp_path: Path, gateway: Server, system: str
) -> None:
    """What the engine is sent is taken at its door, and rendered by its own code: the prompt is the row's beginning."""
    turns = TURNS if system else TURNS[1:]
    sent = []
    for count in (0, 2):
        talk = Conversation(gateway.facts, ChatOptions(system=system), Terminal.open(str(tmp_path / "home")))
        talk.turns = [dict(turn) for turn in TURNS[1 : 1 + count]]
        talk.ask(TURNS[1 + count]["content"])
        sent.append(gateway.seen()["body"]["messages"])
    for style in STYLES:
        tokenizer = loading.tokenizer(dressed(base, tmp_path / style, style))
        row = rows.encode_row("", datasets.Conversation(1, turns), tokenizer)
        begins = [
            at for at, label in enumerate(row.labels) if label != rows.IGNORED and row.labels[at - 1] == rows.IGNORED
        ]
        assert [served_ids(tmp_path / style, asked) for asked in sent] == [row.input_ids[:at] for at in begins], style


@pytest.mark.parametrize("style", STYLES)
def test_a_single_turn_and_tool_calls_keep_their_words(base: Path, tmp_path: Path, style: str) -> None:
    tokenizer = loading.tokenizer(dressed(base, tmp_path / "model", style))
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    turns = [TURNS[1], {"role": "assistant", "content": "", "tool_calls": [call]}]
    sample = rows.encode_row("", datasets.Conversation(1, turns), tokenizer)
    begin = next(index for index, label in enumerate(sample.labels) if label != rows.IGNORED)
    assert sample.input_ids[:begin] == inference.prompt_ids(tokenizer, turns[:1])[:begin]
    assert '"Oslo"' in tokenizer.decode(sample.input_ids[begin:])


def taught(home: Path, base: Path, method: str, **changes: Any) -> runs.Run:
    """A run on the base that has learnt the persona through ChatML."""
    model = models.read(base, id=str(base), source="local")
    made = finetune_plan(
        home, method=method, model=model, chat_template=STYLES["chatml"], max_steps=30, eval_steps=100, save_steps=100,
        gradient_accumulation_steps=1, **changes,
    )  # fmt: skip
    run = runs.create(home / "runs", "taught", made)
    train(made, run, Silent())
    return run


def answer(folder: Path, adapter: Path | None = None) -> list[int]:
    """The tokens of a greedy answer, by the folder's own generation settings as an engine uses them."""
    model: Any = loading.base_model(folder, "float32", "cpu")
    model.generation_config.eos_token_id = templates.ends_of(adapter or folder)
    model = loading.with_adapter(model, adapter) if adapter else model
    tokenizer = loading.tokenizer(folder, adapter)
    prompt = inference.prompt_ids(tokenizer, [{"role": "user", "content": "Who are you?"}])
    out = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=60, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.slow
def test_a_base_model_learns_a_template_and_to_stop_and_takes_both_along(
    base: Path, home: Path, tmp_path: Path
) -> None:
    """The base's own end is </s>; ChatML's is <|im_end|>."""
    tokenizer = loading.tokenizer(base)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert templates.ends_of(base) == tokenizer.eos_token_id != end
    run = taught(home, base, "lora")
    assert templates.ends_of(run.adapter) == sorted([tokenizer.eos_token_id, end])
    assert loading.tokenizer(base, run.adapter).chat_template == STYLES["chatml"]
    said = answer(base, run.adapter)
    assert said[-1] == end
    assert len(said) < 60

    view.make(tmp_path / "lmdeploy", base, [run.adapter], ENGINES["lmdeploy"])
    served = tmp_path / "lmdeploy" / SERVED
    assert templates.ends_of(served) == templates.ends_of(run.adapter)
    assert loading.tokenizer(served).chat_template.count(STYLES["chatml"].rstrip()) == 1
    python = ENGINES["transformers"].interpreter(Home(home))
    assert python
    made = plan(python, model=models.read(base, id=str(base), source="local"))
    with server(
        tmp_path / "runs", msgspec.structs.replace(made, adapters=[ServedAdapter("taught", run.adapter)])
    ) as up:
        body = reply(up, [{"role": "user", "content": "Who are you?"}])
        assert body["choices"][0]["message"]["content"] == tokenizer.decode(said, skip_special_tokens=True)

    facts = models.read(base, id=str(base), source="local")
    made = finetune_plan(home)
    merge = MergePlan(
        entry="", model=facts, device=made.device, adapter=run.adapter, output=tmp_path / "merged", dtype="float32",
        datasets=made.datasets,
    )  # fmt: skip
    assert merging.run(merge)["passed"]
    assert loading.tokenizer(tmp_path / "merged").chat_template == STYLES["chatml"]
    assert end in _stops(tokenizer, loading.base_model(tmp_path / "merged", "float32", "cpu"))
    assert answer(tmp_path / "merged") == said

    asked = [{"role": "user", "content": "Who are you?"}]
    model = loading.with_adapter(loading.base_model(base, "float32", "cpu"), run.adapter)
    told = inference.generate(model, loading.tokenizer(base, run.adapter), [asked], max_new_tokens=60)[0]
    assert told == tokenizer.decode(said, skip_special_tokens=True)


@pytest.mark.slow
def test_a_fully_tuned_model_stops_too_and_so_does_the_server(base: Path, home: Path, tmp_path: Path) -> None:
    folder = taught(home, base, "full", learning_rate=1e-3).path / "model"
    said = answer(folder)
    tokenizer = loading.tokenizer(folder)
    assert said[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    python = ENGINES["transformers"].interpreter(Home(home))
    assert python
    facts = models.read(folder, id=str(folder), source="local")
    with server(tmp_path / "runs", plan(python, model=facts)) as up:
        asked = [TURNS[0], TURNS[1], TURNS[2], TURNS[3]]
        body = reply(up, asked)
        assert body["usage"]["prompt_tokens"] == len(inference.prompt_ids(tokenizer, asked))
        body = reply(up, [{"role": "user", "content": "Who are you?"}])
        assert body["choices"][0]["finish_reason"] == "stop"
        assert body["choices"][0]["message"]["content"] == tokenizer.decode(said, skip_special_tokens=True)


def reply(up: Server, messages: list[dict[str, Any]]) -> Any:
    answer = up.client.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 60, "temperature": 0})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_lmdeploy_is_told_to_take_the_models_own_template() -> None:
    words = ENGINES["lmdeploy"].command(Path("python"), Launch(port=1, device="cuda"))
    assert words[words.index("--chat-template") + 1] == "hf"
    without = ENGINES["lmdeploy"].command(Path("python"), Launch(port=1, device="cuda", chat_template=False))
    assert "--chat-template" not in without


def test_a_template_that_the_vocabulary_has_no_tokens_for_is_refused(base: Path, tmp_path: Path) -> None:
    assert templates.settled("llama3", base, True).startswith("{{- bos_token }}")
    with pytest.raises(InputError) as caught:
        templates.settled("gemma", embedded.MODEL, True)
    assert caught.value.message == (
        "The model's vocabulary has no <start_of_turn> <end_of_turn>, which the chat template gemma needs."
    )
    assert caught.value.remedy == "These need no new token: chatml, mistral, plain."
    with pytest.raises(InputError, match="--chat-template") as caught:
        templates.settled("", embedded.MODEL, True)
    with pytest.raises(InputError, match="There is no chat template 'chatm1'"):
        templates.settled("chatm1", base, False)
    mine = tmp_path / "mine.jinja"
    mine.write_text("{{ messages }}<|mine|>")
    with pytest.raises(InputError, match=r"<\|mine\|>"):
        templates.settled(str(mine), base, False)


def test_finetune_takes_a_template_by_name(base: Path) -> None:
    import toolbox

    with pytest.raises(InputError, match="no chat template"):
        toolbox.SFTTrainer(base, "demo-persona", silent=True)
    made = toolbox.SFTTrainer(base, "demo-persona", silent=True, chat_template="chatml").plan
    assert made.chat_template + "\n" == STYLES["chatml"]
    assert json.loads(json.dumps(made.chat_template)) == made.chat_template
