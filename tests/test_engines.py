"""Which engine serves, where its interpreter lives, and the exact command that starts it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from conftest import ROOT
from serving_help import inhabitants, plan, server, standin_interpreter

from toolbox import cli, device, engines
from toolbox.config import Home, find_home
from toolbox.engines import ENGINES, Launch
from toolbox.errors import InputError
from toolbox.plan import ServedAdapter
from toolbox.templates import calling

LAUNCH = Launch(port=4711, device="cuda", dtype="bfloat16")
INSTALLED = {
    name: engine.interpreter(find_home(), dict(os.environ))
    for name, engine in ENGINES.items()
    if engine.own_interpreter
}
TWO = (("tuned-1", "tuned-1"), ("tuned-2", "tuned-2"))


def test_transformers_is_our_own_server_in_this_environments_python() -> None:
    engine = ENGINES["transformers"]
    python = engine.interpreter(Home(Path("/nowhere")), {})
    assert python == Path(sys.executable)
    assert engine.command(python, LAUNCH) == [
        sys.executable, "-P", "-m", "toolbox.serving.batching", "served", "--port", "4711", "--device", "cuda",
        "--dtype", "bfloat16",
    ]  # fmt: skip
    launch = Launch(port=1, device="cpu", adapters=(("tuned-1", "tuned-1"), ("tuned-2", "tuned-2")))
    assert engine.command(python, launch)[-4:] == ["--adapter", "tuned-1=tuned-1", "--adapter", "tuned-2=tuned-2"]
    assert (Path(engine.environ["PYTHONPATH"]) / "toolbox" / "serving" / "batching").is_dir()


def started(name: str, **changes: Any) -> str:
    """The command line of an engine, as one text."""
    launch = msgspec.structs.replace(LAUNCH, **changes)
    return " ".join(ENGINES[name].command(Path("/e/bin/python"), launch)).replace(str(engines.KEYED), "KEYED")


def test_lmdeploy_is_started_with_its_own_python() -> None:
    assert started("lmdeploy") == (
        "/e/bin/python -P KEYED --api-keys lmdeploy serve api_server served --model-name served --server-name 127.0.0.1"
        " --server-port 4711 --device cuda --dtype bfloat16 --log-level WARNING --disable-fastapi-docs"
        " --logprobs-mode raw_logprobs --chat-template hf"
    )
    assert started("lmdeploy", adapters=TWO, calls="hermes").endswith(
        " --tool-call-parser qwen3 --backend pytorch --adapters tuned-1=tuned-1 tuned-2=tuned-2"
    )


def test_vllm_is_started_with_its_own_python() -> None:
    assert started("vllm", memory_free=0.5) == (
        "/e/bin/python -P KEYED --middleware vllm.entrypoints.cli.main serve served --served-model-name served --host"
        " 127.0.0.1 --port 4711 --dtype bfloat16 --max-model-len auto --gpu-memory-utilization 0.47"
        " --disable-fastapi-docs --disable-uvicorn-access-log --uvicorn-log-level warning"
    )
    assert started("vllm", adapters=TWO, calls="llama3", max_lora_rank=24).endswith(
        " --enable-auto-tool-choice --tool-call-parser llama3_json --enable-lora --max-loras 2 --max-lora-rank 32"
        " --lora-modules tuned-1=tuned-1 tuned-2=tuned-2"
    )


def test_sglang_is_started_with_its_own_python_and_calls_adapters_its_own_way() -> None:
    assert started("sglang") == (
        "/e/bin/python -P KEYED --api-key sglang.launch_server --model-path served --served-model-name served --host"
        " 127.0.0.1 --port 4711 --dtype bfloat16 --device cuda --log-level warning"
    )
    assert started("sglang", adapters=TWO, calls="gpt_oss").endswith(
        " --tool-call-parser gpt-oss --enable-lora --max-loras-per-batch 3 --lora-paths tuned-1=tuned-1 tuned-2=tuned-2"
    )
    assert ENGINES["sglang"].adapter_id.format(adapter="tuned-1") == "served:tuned-1"


@pytest.mark.parametrize(
    ("path", "key", "status"), [("/health", "", 200), ("/invocations", "", 401), ("/v1/x", "k", 200)]
)
def test_an_engine_answers_nobody_without_its_key(tmp_path: Path, path: str, key: str, status: int) -> None:
    """keyed.py starts a module, hides the key from its command line, and guards every route where it is told to."""
    (tmp_path / "app.py").write_text(
        "import asyncio, os, sys, importlib\n"
        "async def app(scope, receive, send): await send({'type': 'http.response.start', 'status': 200})\n"
        "option, name = sys.argv[-2:]\n"
        "module, kind = name.rsplit('.', 1)\n"
        "guarded = getattr(importlib.import_module(module), kind)(app)\n"
        "sent = []\n"
        "async def send(message): sent.append(message)\n"
        "headers = [(b'authorization', sys.argv[2].encode())]\n"
        "asyncio.run(guarded({'type': 'http', 'path': sys.argv[1], 'headers': headers}, None, send))\n"
        "print(option, sent[0]['status'])\n"
    )
    done = subprocess.run(
        [sys.executable, str(engines.KEYED), "--middleware", "app", path, f"Bearer {key}"],
        env={"YCDY_ENGINE_KEY": "k", "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == f"--middleware {status}\n", done.stderr


@pytest.mark.parametrize(
    ("template", "style"),
    [
        ("{% if tools %}<tool_call>{{ call | tojson }}</tool_call>{% endif %}", "hermes"),
        ("{% if tools %}<tool_call>\\n<function={{ name }}>{% endif %}", "qwen3_coder"),
        ("{% if tools %}<tool_call>{{ name }}<arg_key>{% endif %}", "glm47"),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", "mistral"),
        ('{% if tools %}Environment: ipython {"name": x, "parameters": y}{% endif %}', "llama3"),
        ("<|im_start|>{{ message.content }}<|im_end|>", ""),
    ],
)
def test_a_templates_manner_of_calling_tools_is_told_by_what_it_writes(template: str, style: str) -> None:
    assert calling.style(template) == style
    assert not style or style in engines.PARSERS


@pytest.mark.parametrize("name", ENGINES)
def test_no_engine_is_allowed_to_run_a_models_own_code(name: str) -> None:
    for launch in (LAUNCH, Launch(port=1, device="cpu", adapters=(("tuned-1", "tuned-1"),))):
        assert not any(
            "trust_remote_code" in word.replace("-", "_") for word in ENGINES[name].command(Path("p"), launch)
        )


def test_an_engine_lives_where_it_is_named_then_in_the_image_then_at_home(tmp_path: Path) -> None:
    engine, home = ENGINES["lmdeploy"], Home(tmp_path / "home")
    assert engine.interpreter(home, {}) is None
    at_home = standin_interpreter(home.engines / "lmdeploy" / "bin" / "python")
    assert engine.interpreter(home, {}) == at_home
    named = standin_interpreter(tmp_path / "named" / "lmdeploy" / "bin" / "python")
    assert engine.interpreter(home, {"YCDY_ENGINES": str(tmp_path / "named")}) == named


def test_auto_is_the_first_that_is_installed_and_loads_the_model(tmp_path: Path) -> None:
    home = Home(tmp_path)

    def chosen(cuda: bool = True, quantization: str = "") -> tuple[str, str]:
        engine, why = engines.choose("auto", cuda, home, {}, quantization)
        return engine.name, why

    name, why = chosen()
    assert name == "transformers"
    assert why.startswith("none of vllm, sglang, lmdeploy is installed; to install one: bash ")
    assert "engines install vllm" in why
    standin_interpreter(home.engines / "lmdeploy" / "bin" / "python")
    assert chosen() == ("lmdeploy", "the first installed of vllm, sglang, lmdeploy")
    standin_interpreter(home.engines / "vllm" / "bin" / "python")
    assert chosen()[0] == "vllm"
    assert chosen(quantization="bitsandbytes")[0] == "transformers"  # vLLM 0.32 loads none, SGLang is not here
    assert chosen(cuda=False) == ("transformers", "no NVIDIA GPU, which vllm, sglang, lmdeploy need")
    (home.engines / "vllm" / "preparing").touch()
    assert chosen()[0] == "lmdeploy"  # an environment that is half made is none


def test_an_engine_that_can_not_serve_is_refused_with_the_way_out(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(InputError, match="not installed") as caught:
        engines.choose("lmdeploy", True, home, {})
    assert "engines install lmdeploy" in caught.value.remedy
    with pytest.raises(InputError, match="install can't be"):
        cli.understand(["serve", "--install", "evalscope"])
    standin_interpreter(home.engines / "vllm" / "bin" / "python")
    with pytest.raises(InputError, match="needs an NVIDIA GPU"):
        engines.choose("vllm", False, home, {})
    with pytest.raises(InputError, match="does not load models quantised with bitsandbytes") as caught:
        engines.choose("vllm", True, home, {}, "bitsandbytes")
    assert caught.value.remedy == "These do: transformers, sglang"


def test_an_engines_environment_holds_nothing_of_ours() -> None:
    ours = {
        "PATH": "/bin", "PYTHONPATH": "/x", "YCDY_API_KEY": "canary", "HF_TOKEN": "canary", "http_proxy": "canary",
        "PYTHONSTARTUP": "canary", "CUDA_VISIBLE_DEVICES": "4,5,7", "OMP_NUM_THREADS": "3",
    }  # fmt: skip
    made = engines.environment(Path("/c"), "cuda", 2, "secret", ours)
    assert "canary" not in made.values()
    assert "PYTHONPATH" not in made
    assert {name for name, value in made.items() if value == "secret"} == set(engines.KEY_VARIABLES)
    assert made["CUDA_VISIBLE_DEVICES"] == "7"  # the third of those that are visible
    assert {made[name] for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")} == {"1"}
    assert (made["OMP_WAIT_POLICY"], made["OMP_NUM_THREADS"], made["HF_HOME"]) == ("PASSIVE", "3", "/c")
    assert made["TORCHINDUCTOR_CACHE_DIR"].startswith("/c/"), "not in /tmp, where anybody may have made it"
    assert engines.environment(Path("/c"), "cpu", 0, "secret", ours)["CUDA_VISIBLE_DEVICES"] == ""


def test_lmdeploys_command_starts_answers_and_ends_as_a_process(tmp_path: Path) -> None:
    python = standin_interpreter(tmp_path / "engines" / "lmdeploy" / "bin" / "python")
    adapters = [ServedAdapter("甲", tmp_path / "one"), ServedAdapter("$(touch x) 乙", tmp_path / "two")]
    for adapter in adapters:
        adapter.path.mkdir()
        (adapter.path / "adapter_config.json").write_text("{}")
        (adapter.path / "adapter_model.safetensors").write_bytes(b"")
        (adapter.path / "harmful.py").write_text("")
    with server(tmp_path / "runs", plan(python, engine="lmdeploy", adapters=adapters)) as running:
        cards = running.client.get("/v1/models").json()["data"]
        assert [(card["id"], card["parent"]) for card in cards] == [
            ("甲", "demo"), ("$(touch x) 乙", "demo"), ("demo", None)
        ]  # fmt: skip
        for name, theirs in [("demo", "served"), ("$(touch x) 乙", "tuned-2"), ("甲", "tuned-1")]:
            assert running.chat("hello", model=name).json()["model"] == name
            assert running.seen()["body"]["model"] == theirs
        answer = running.chat("hello", n=2).json()
        assert (answer["model"], answer["choices"][0]["message"]["content"]) == ("甲", "you said hello")
        assert running.chat("hello", model="tuned-1").status_code == 404
        seen = running.seen()
        assert seen["argv"][:6] == ["-P", str(engines.KEYED), "--api-keys", "lmdeploy", "serve", "api_server"]
        assert seen["argv"][-5:] == ["--backend", "pytorch", "--adapters", "tuned-1=tuned-1", "tuned-2=tuned-2"]
        assert not {"PYTHONPATH", "YCDY_API_KEY", "YCDY_HOME"} & set(seen["environ"])
        served = {path.name for path in (running.engine_folder / "tuned-2").iterdir()}
        assert served == {"adapter_config.json", "adapter_model.safetensors"}
        assert len(inhabitants(running.engine_folder)) == 2
    assert inhabitants(running.engine_folder) == []


def lora_of_demo(folder: Path) -> Path:
    """An adapter of the embedded model that changes what it says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(ROOT / "toolbox" / "embedded" / "model")
    config = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def port_of(process: int) -> int:
    words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
    return int(next(words[at + 1] for at, word in enumerate(words) if word in ("--port", "--server-port")))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", INSTALLED)
def test_an_engine_that_is_installed_serves_a_model_and_an_adapter(tmp_path: Path, name: str) -> None:
    """The real thing, wherever an environment of it is: `YCDY_ENGINES` names the folder of environments."""
    python = INSTALLED[name]
    if python is None:
        pytest.skip(f"{name} is not installed")
    adapter = ServedAdapter("tuned", lora_of_demo(tmp_path / "adapter"))
    best = device.probe().best
    made = plan(python, engine=name, adapters=[adapter], dtype="bfloat16", device=best)
    with server(tmp_path / "runs", made, start_s=800) as running:
        answers = [
            running.chat("Who are you?", model=model, max_tokens=8, temperature=0).json()["choices"][0]["message"]
            for model in ("demo", "tuned")
        ]
        assert answers[0]["content"] != answers[1]["content"]
        assert "small language model" in running.chat("Who are you?", model="demo", temperature=0).text
        engine = f"http://127.0.0.1:{port_of(min(inhabitants(running.engine_folder)))}"
        assert httpx.get(engine + "/health").status_code == 200
        for path in ("/v1/models", "/invocations", "/tokenize"):
            assert httpx.post(engine + path, json={}).status_code in (401, 403), path
    assert inhabitants(running.engine_folder) == []
