"""`models search|list|show|refresh`, plans for models that are not here, and the menu's catalogue."""

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from conftest import ROOT, Cli
from terminals import in_terminal

from toolbox import embedded, registry
from toolbox.config import Home
from toolbox.errors import HubError, InputError
from toolbox.registry import refreshing

A10 = "NVIDIA A10:24GiB"
HEADER = "huggingface,modelscope,family,model_type,native,modality,task,params_b,licence\n"
ROW = "someone/New-7B,,new,qwen2,yes,text,chat,7,mit\n"


def test_a_search_says_what_fits_and_by_which_method(toolbox_cli: Cli) -> None:
    told = toolbox_cli("models", "search", "qwen3", "--size", "1-40", "--assume-device", A10, "--json").done().json
    methods = {model["name"]: model["methods"] for model in told["models"]}
    assert methods["Qwen/Qwen3-1.7B"] == ["lora", "qlora"]
    assert methods["Qwen/Qwen3-32B"] == []
    fitting = toolbox_cli("models", "search", "qwen3", "--size=1-40", "--fits", "--assume-device", A10, "--json").json
    assert {model["name"] for model in fitting["models"]} == {name for name, found in methods.items() if found}


def test_what_is_known_of_a_model_is_shown(toolbox_cli: Cli) -> None:
    told = toolbox_cli("models", "show", "Qwen/Qwen3-30B-A3B", "--assume-device", "A100:80GiB", "--json").done().json
    assert (told["parameters"], told["guessed"]) == (30_532_122_624, False)
    assert told["licence"] == "apache-2.0"
    assert told["methods"]


def test_a_plan_needs_neither_the_model_nor_torch(toolbox_cli: Cli, home: Path) -> None:
    line = ["plan", "--model", "Qwen/Qwen2.5-7B-Instruct", "--assume-device", A10, "--home", str(home), "--lang", "en"]
    looks = f"import sys\nfrom toolbox import cli\nprint(cli.main({line!r}))\n" + (
        "print([name for name in ('torch', 'transformers', 'httpx', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", looks], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["0", "[]"]
    assert "its shape is known" in done.stdout
    refused = toolbox_cli("plan", "--model", "Qwen/Qwen2.5-7B-Instuct", "--lang", "en")
    assert refused.status == 2
    assert "Did you mean Qwen/Qwen2.5-7B-Instruct?" in refused.err


def test_a_config_alone_is_planned_for_and_not_trained(toolbox_cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    (folder / "config.json").write_bytes((embedded.MODEL / "config.json").read_bytes())
    told = toolbox_cli("plan", "--model", str(folder), "--json").done().json
    assert told["fits"]
    refused = toolbox_cli("finetune", "--model", str(folder), "--dataset", "demo-persona", "--yes", "--lang", "en")
    assert refused.status == 2
    assert "holds no safetensors weights" in refused.err


def test_a_refreshed_table_lies_over_the_shipped_one(toolbox_cli: Cli, home: Path, tmp_path: Path) -> None:
    table = tmp_path / "new.csv"
    table.write_text(HEADER + ROW + "../../x,,f,llama,yes,text,chat,7,\nsomeone/y,,f,llama,yes,text,chat,nan,\n")
    tried = toolbox_cli("models", "refresh", str(table), "--dry-run", "--json").done().json
    assert not refreshing.table(Home(home)).exists()
    told = toolbox_cli("models", "refresh", str(table), "--json").done().json
    assert (told["models"], told["new"], told["refused"]) == (1, 1, 2)
    assert tried["sha256"] == told["sha256"]
    assert refreshing.table(Home(home)).stat().st_mode & 0o777 == 0o600
    assert registry.get("someone/New-7B", Home(home)).licence == "mit"
    assert toolbox_cli("plan", "--model", "someone/New-7B", "--assume-device", A10, "--json").done().json["fits"]
    refreshing.table(Home(home)).write_text("torn")
    assert len(registry.every(Home(home))) == len(registry.shipped())


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>no table</html>", HEADER.encode(), b"\xff\xfe\x00", HEADER.encode() + b"a\x00b,,,,,,,7,\n",
     b"huggingface\n" + b"x" * 200_000, HEADER.encode() + b'=cmd|"/c calc"!A0,,f,llama,yes,text,chat,7,\n'],
)  # fmt: skip
def test_what_is_no_table_changes_nothing(content: bytes, tmp_path: Path) -> None:
    home = Home(tmp_path)
    refreshing.keep("good", (HEADER + ROW).encode(), set(), home)
    with pytest.raises(InputError):
        refreshing.keep("bad", content, set(), home)
    assert registry.find("someone/New-7B", home)


class _Loopback(http.server.BaseHTTPRequestHandler):
    """Serves a table, an endless one and an error; remembers the headers."""

    seen: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.seen.append(str(self.headers))
        self.send_response(500 if self.path == "/broken" else 200)
        self.end_headers()
        if self.path == "/endless":
            with suppress(OSError):
                while True:
                    self.wfile.write(b"x" * 65536)
        self.wfile.write((HEADER + ROW).encode())

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def loopback() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Loopback)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_address_gets_no_secrets_and_sends_no_more_than_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.setenv(name, "canary-secret")
    with loopback() as address:
        assert refreshing.fetch(f"{address}/models.csv") == (HEADER + ROW).encode()
        assert "canary-secret" not in "".join(_Loopback.seen)
        with pytest.raises(InputError, match="too large"):
            refreshing.fetch(f"{address}/endless")
        with pytest.raises(HubError, match="500"):
            refreshing.fetch(f"{address}/broken")
    for wrong in ("file:///etc/passwd", "ftp://127.0.0.1/x", "http://name:key@127.0.0.1/x"):
        with pytest.raises(InputError):
            refreshing.fetch(wrong)


def test_the_catalogue_leads_to_a_model_by_plain_lines(toolbox_cli: Cli) -> None:
    """Plan, the catalogue, text to chat with, below 1B, the first; then nothing more is said."""
    searched = toolbox_cli(input="7\n2\n/qwen2.5 7b\n0\n0\nq\n", env={"YCDY_LANG": "en"}).out
    assert "Models about 'qwen2.5 7b'" in searched
    assert "Qwen/Qwen2.5-7B-Instruct" in searched
    shown = toolbox_cli(input="7\n2\n1\n1\n1\n\n\n\n\n\n\n\n\n0\n", env={"YCDY_LANG": "en"}).out
    assert "Models by what they are for" in shown
    assert "can be fine-tuned here" in shown
    assert "The same in one line: " in shown
    chosen = shown.partition("The same in one line: ")[2].partition("--model ")[2].split()[0]
    assert registry.find(chosen, Home(Path("/nonexistent")))


def test_the_catalogue_in_a_terminal(toolbox_environ: dict[str, str]) -> None:
    child = in_terminal({**toolbox_environ, "YCDY_LANG": "en"}, "-m", "toolbox")
    child.expect("0 or q leaves")
    child.send("7")
    child.expect("catalogue of models")
    child.send("2")
    child.expect("Models by what they are for")
    child.send("s")
    child.expect("Part of a name")
    child.send("qwen3-vl 4b\r")
    child.expect("Qwen/Qwen3-VL-4B-Instruct")
    child.send("0")
    child.expect("Models by what they are for")
    child.send("q")
    child.expect_exact("\x1b[?25h")
    child.close(force=True)


def test_the_json_of_a_search_is_plain(toolbox_cli: Cli) -> None:
    told = toolbox_cli("models", "search", "--kind", "ocr", "--json").done()
    assert msgspec.json.decode(told.out.splitlines()[-1])["count"] == len(told.json["models"]) > 0
