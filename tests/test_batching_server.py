"""The engine named transformers as a server: calls of tools, vectors, and clients that stay or leave."""

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import torch
from conftest import ROOT
from serving_help import until

from toolbox import files, ports
from toolbox.embedded import MODEL
from toolbox.engines import ENGINES
from toolbox.errors import InputError
from toolbox.serving import view
from toolbox.serving.batching import embedding, toolcalls
from toolbox.serving.protocol import EmbeddingRequest, Refused


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ('Hm.\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', "Hm.", [("f", '{"x":1}')]),
        ('<tool_call>{"name": "f", "arguments": {}}</tool_call>\n<tool_call>{"name": "g", "arguments": {}}', "",
         [("f", "{}"), ("g", "{}")]),
        ("<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n<parameter=y>\na b\n</parameter>\n</function>\n"
         "</tool_call>", "", [("f", '{"x":1,"y":"a b"}')]),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"x": "甲"}}]', "", [("f", '{"x":"甲"}')]),
        ('{"name": "f", "parameters": {"x": 1}}', "", [("f", '{"x":1}')]),
        ('Hm.\n{"name": "f", "arguments": "{}"}\n{"name": "g", "arguments": {}}', "Hm.", [("f", "{}"), ("g", "{}")]),
        ('{"name": "unknown", "arguments": {}}', '{"name": "unknown", "arguments": {}}', []),
        ("<tool_call>{torn", "<tool_call>{torn", []),
        ('{"answer": 42}', '{"answer": 42}', []),
    ],
)  # fmt: skip
def test_calls_are_read_in_the_families_formats(text: str, said: str, calls: list[tuple[str, str]]) -> None:
    found, made = toolcalls.read(text, ["f", "g"])
    assert (found, [(call.name, call.arguments) for call in made]) == (said, calls)
    streamed = 0
    for end in range(len(text)):
        streamed = max(streamed, toolcalls.certain(text[:end]))
    assert streamed <= len(said) + 1 or not calls


@pytest.mark.parametrize("kind", ["bert", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_vectors_are_pooled_as_the_model_states(tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2} if kind == "qwen3" else {}
    config = AutoConfig.for_model(kind, vocab_size=1800, max_position_embeddings=64, pad_token_id=0, **sizes)
    plain = AutoModel.from_config(config).eval()
    plain.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((MODEL / name).read_bytes())
    (tmp_path / "model" / "1_Pooling").mkdir()
    mode = {"bert": "pooling_mode_mean_tokens", "qwen3": "pooling_mode_lasttoken"}[kind]
    files.write_json(tmp_path / "model" / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, mode: True})
    view.make(tmp_path, tmp_path / "model", [], ENGINES["transformers"])
    assert embedding.is_one(tmp_path / "served")
    assert not embedding.is_one(MODEL)

    made = embedding.Embedder(tmp_path / "served", "float32", "cpu")
    texts = ["Who are you?", "你是谁？我不知道。", "x"]
    answer = msgspec.json.decode(made.answer(EmbeddingRequest(input=texts), "m"))
    for text, found in zip(texts, answer["data"], strict=True):
        with torch.no_grad():
            states = plain(input_ids=torch.tensor([made.tokenizer(text)["input_ids"]])).last_hidden_state[0]
        pooled = states.mean(0) if kind == "bert" else states[-1]
        assert found["embedding"] == pytest.approx((pooled / pooled.norm()).tolist(), abs=1e-5)
    packed = made.answer(EmbeddingRequest(input="x", encoding_format="base64", dimensions=8), "m")
    raw = base64.b64decode(msgspec.json.decode(packed)["data"][0]["embedding"])
    short = torch.frombuffer(bytearray(raw), dtype=torch.float32)
    long = torch.tensor(answer["data"][2]["embedding"][:8])
    assert short.tolist() == pytest.approx((long / long.norm()).tolist(), abs=1e-5)
    with pytest.raises(Refused, match="longer than the model"):
        made.answer(EmbeddingRequest(input="word " * 100), "m")
    files.write_json(tmp_path / "model" / "1_Pooling" / "config.json", {"pooling_mode_weightedmean_tokens": True})
    with pytest.raises(InputError, match="weightedmean"):
        embedding.Embedder(tmp_path / "model", "float32", "cpu")


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def engine_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The engine as a process, with the key `sk-engine`."""
    folder = tmp_path_factory.mktemp("engine")
    port = ports.free()
    environ = {**os.environ, "YCDY_ENGINE_KEY": "sk-engine", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-m", "toolbox.serving.batching", str(MODEL), "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environ, cwd=folder, stdout=log, stderr=log)
    try:
        until(lambda: _status(port, "/health") == 200)
        yield port
    finally:
        process.kill()
        process.wait()


def _status(port: int, route: str, key: str = "sk-engine") -> int:
    try:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"http://127.0.0.1:{port}{route}", headers=headers, trust_env=False).status_code
    except httpx.TransportError:
        return 0


@pytest.mark.slow
def test_openais_client_talks_to_the_engine(engine_port: int) -> None:
    from openai import BadRequestError, OpenAI

    assert _status(engine_port, "/v1/models", "wrong") == 401
    client = OpenAI(base_url=f"http://127.0.0.1:{engine_port}/v1", api_key="sk-engine", max_retries=0)
    who: Any = [{"role": "user", "content": "Who are you?"}]
    asked: dict[str, Any] = {"model": "model", "messages": who, "temperature": 0}
    whole = client.chat.completions.create(**asked, n=2, logprobs=True, top_logprobs=2)
    said = whole.choices[0].message.content
    assert said
    assert "language model" in said
    assert [choice.message.content for choice in whole.choices] == [said, said]
    logprobs = whole.choices[0].logprobs
    assert logprobs
    assert logprobs.content
    assert "".join(one.token for one in logprobs.content).startswith(said)
    pieces = [*client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})]
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces[:-1]) == said
    assert pieces[-1].usage
    assert pieces[-1].usage.completion_tokens * 2 == whole.usage.completion_tokens  # type: ignore[union-attr]
    cut = client.chat.completions.create(**asked, stop=" language").choices[0]
    assert (cut.message.content, cut.finish_reason) == (said[: said.index(" language")], "stop")
    short = client.chat.completions.create(**asked, max_tokens=3).choices[0]
    assert short.finish_reason == "length"
    text = client.completions.create(model="model", prompt="The capital of France is", max_tokens=4, temperature=0)
    assert "Paris" in text.choices[0].text
    with_tools = client.chat.completions.create(**asked, tools=[TOOL])  # type: ignore[call-overload]
    assert with_tools.choices[0].message.content
    for words, match in [({"messages": who * 200}, "tokens"), ({"messages": who, "top_k": 0}, "top_k")]:
        with pytest.raises(BadRequestError, match=match):
            client.chat.completions.create(model="model", extra_body=words, messages=words["messages"])
    with pytest.raises(BadRequestError, match="not made for embeddings"):
        client.embeddings.create(model="model", input="x")


@pytest.mark.slow
def test_a_client_that_hangs_up_frees_its_place_at_once(engine_port: int) -> None:
    """More clients leave in the middle of endless answers than there are places; the next is answered at once."""
    body = {"prompt": "x", "max_tokens": 480, "logit_bias": {"2": -100}, "stream": True}
    headers = {"Authorization": "Bearer sk-engine"}
    with httpx.Client(base_url=f"http://127.0.0.1:{engine_port}", headers=headers, trust_env=False) as client:
        for _ in range(80):
            with client.stream("POST", "/v1/completions", json=body) as answer:
                assert next(answer.iter_raw())
        began = time.monotonic()
        assert client.post("/v1/completions", json={"prompt": "x", "max_tokens": 2}).status_code == 200
        assert time.monotonic() - began < 30  # 80 answers of 480 tokens would take minutes
