"""Which engine serves, where its interpreter lives, and the exact command that starts it."""

import sys
from pathlib import Path

import pytest
from serving_help import inhabitants, plan, server, standin_interpreter

from toolbox import engines
from toolbox.config import Home
from toolbox.engines import ENGINES, Launch
from toolbox.errors import InputError
from toolbox.plan import ServedAdapter

LAUNCH = Launch(port=4711, device="cuda", dtype="bfloat16")


def test_transformers_is_started_with_this_environments_python() -> None:
    engine = ENGINES["transformers"]
    python = engine.interpreter(Home(Path("/nowhere")), {})
    assert python == Path(sys.executable)
    assert engine.command(python, LAUNCH) == [
        sys.executable, "-P", "-m", "transformers.cli.transformers", "serve", "served", "--host", "127.0.0.1",
        "--port", "4711", "--device", "cuda", "--dtype", "bfloat16", "--log-level", "warning",
    ]  # fmt: skip


def test_lmdeploy_is_started_with_its_own_python() -> None:
    command = ENGINES["lmdeploy"].command(Path("/e/bin/python"), LAUNCH)
    assert command == [
        "/e/bin/python", "-P", "-m", "lmdeploy", "serve", "api_server", "served", "--model-name", "served",
        "--server-name", "127.0.0.1", "--server-port", "4711", "--device", "cuda", "--dtype", "bfloat16",
        "--log-level", "WARNING", "--disable-fastapi-docs", "--chat-template", "hf",
    ]  # fmt: skip


def test_lmdeploy_takes_adapters_as_models_of_their_own() -> None:
    launch = Launch(port=1, device="cuda", adapters=(("tuned-1", "tuned-1"), ("tuned-2", "tuned-2")))
    words = ["--backend", "pytorch", "--adapters", "tuned-1=tuned-1", "tuned-2=tuned-2"]
    assert ENGINES["lmdeploy"].command(Path("p"), launch)[-5:] == words


@pytest.mark.parametrize("name", ENGINES)
def test_no_engine_is_allowed_to_run_a_models_own_code(name: str) -> None:
    for launch in (LAUNCH, Launch(port=1, device="cpu", adapters=(("tuned-1", "tuned-1"),))):
        assert not any("trust" in word for word in ENGINES[name].command(Path("p"), launch))


def test_an_engine_lives_where_it_is_named_then_in_the_image_then_at_home(tmp_path: Path) -> None:
    engine, home = ENGINES["lmdeploy"], Home(tmp_path / "home")
    assert engine.interpreter(home, {}) is None
    at_home = standin_interpreter(home.engines / "lmdeploy" / "bin" / "python")
    assert engine.interpreter(home, {}) == at_home
    named = standin_interpreter(tmp_path / "named" / "lmdeploy" / "bin" / "python")
    assert engine.interpreter(home, {"YCDY_ENGINES": str(tmp_path / "named")}) == named


def test_auto_is_lmdeploy_only_with_a_gpu_and_where_it_is_installed(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert engines.choose("auto", True, home, {}).name == "transformers"
    standin_interpreter(home.engines / "lmdeploy" / "bin" / "python")
    assert engines.choose("auto", True, home, {}).name == "lmdeploy"
    assert engines.choose("auto", False, home, {}).name == "transformers"
    with pytest.raises(InputError, match="needs an NVIDIA GPU"):
        engines.choose("lmdeploy", False, home, {})


def test_an_engine_that_is_not_installed_is_refused_with_the_way_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not installed") as caught:
        engines.choose("lmdeploy", True, Home(tmp_path), {})
    assert f"YCDY_ENV={tmp_path}/engines/lmdeploy YCDY_LOCK=lmdeploy bash" in caught.value.remedy


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
        assert seen["argv"][:6] == ["-P", "-m", "lmdeploy", "serve", "api_server", "served"]
        assert seen["argv"][-5:] == ["--backend", "pytorch", "--adapters", "tuned-1=tuned-1", "tuned-2=tuned-2"]
        assert not {"PYTHONPATH", "YCDY_API_KEY", "YCDY_HOME"} & set(seen["environ"])
        served = {path.name for path in (running.engine_folder / "tuned-2").iterdir()}
        assert served == {"adapter_config.json", "adapter_model.safetensors"}
        assert len(inhabitants(running.engine_folder)) == 2
    assert inhabitants(running.engine_folder) == []
