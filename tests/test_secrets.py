"""Secrets through a whole chain: nowhere in files, logs, reports or process lists; and no pickle is left anywhere."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Answer, Cli
from loopback_hub import LoopbackHub

from toolbox import embedded

CANARY = "cAnArY"
SECRETS = {
    "HF_TOKEN": f"hf_{CANARY}OfHuggingFace",
    "MODELSCOPE_API_TOKEN": f"ms-{CANARY}-of-modelscope",
    "OPENAI_API_KEY": f"sk-{CANARY}-of-openai",
    "WANDB_API_KEY": f"{CANARY}{'0' * 34}",
    "SWANLAB_API_KEY": f"{CANARY}swanlab",
    "https_proxy": f"http://me:{CANARY}@127.0.0.1:9",
    "HTTPS_PROXY": f"http://me:{CANARY}@127.0.0.1:9",
}
SERVED = f"sk-{CANARY}-of-the-gateway"
"""The one key that is kept, since later commands need it: in its run's result.json and api_key."""
SIGNED = b"s3cret"
"""What the loopback hub's storage signs addresses with."""
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x93NUMPY")


@contextmanager
def watched() -> Iterator[list[str]]:
    """The command lines on this machine that hold a canary, looked for all the while."""
    found: list[str] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.2):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = path.read_bytes()
                except OSError:
                    continue
                if CANARY.encode() in line or SIGNED in line:
                    found.append(line.decode(errors="replace"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
def test_no_secret_is_left_anywhere_from_download_to_report(
    source: str, tmp_path: Path, home: Path, toolbox_cli: Cli
) -> None:
    person, scratch = tmp_path / "person", tmp_path / "scratch"
    person.mkdir()
    scratch.mkdir()
    said: list[Answer] = []
    with LoopbackHub(storage=True) as hub, watched() as seen:
        hub.add("me/tiny", {file.name: file.read_bytes() for file in embedded.MODEL.iterdir()})
        environ = {
            **SECRETS, "HOME": str(person), "TMPDIR": str(scratch), "XDG_CACHE_HOME": str(person / ".cache"),
            "MODELSCOPE_ENDPOINT": hub.url, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "no_proxy": "127.0.0.1",
            "YCDY_SERVE_API_KEY": SERVED,
        }  # fmt: skip

        def done(*words: str, input: str = "") -> Answer:
            said.append(toolbox_cli(*words, env=environ, input=input).done())
            return said[-1]

        done("download", "me/tiny", "--source", source)
        done("finetune", "--model", "me/tiny", "--dataset", "demo-persona", "--set", "max_steps=2", "--yes")
        done("merge", "--run", "last")
        done("evaluate", "--model", "me/tiny", "--suite", "demo-qa", "--limit", "1")
        done("serve", "--model", "me/tiny", "--port", "0", "--background")
        done("chat", "--model", "me/tiny", "--max-tokens", "4", input="Hello\n/save\n")
        done("runs", "stop", "last")
        done("runs", "report", "last")
        done("doctor", "--json")
        done("cache", "verify")
        assert any(CANARY in asked.authorization for asked in hub.seen), "the hub was shown its token"
    assert seen == []
    for answer in said:
        text = (answer.out + answer.err).replace(SERVED, "")
        assert CANARY not in text
        assert SIGNED.decode() not in text
    for file in (path for folder in (home, person, scratch) for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        if file.parent.name.partition("-serve-")[1] and file.name in ("result.json", "api_key"):
            content = content.replace(SERVED.encode(), b"")
        assert CANARY.encode() not in content, file
        assert SIGNED not in content, file
        assert not content.startswith(PICKLES), file
        assert b"data.pkl" not in content, file
        if file.is_relative_to(home) and not file.is_relative_to(home / "models") and not file.is_symlink():
            assert file.stat().st_mode & 0o077 == 0, (file, oct(file.stat().st_mode))
    assert home.stat().st_mode & 0o077 == 0
    assert os.listdir(scratch) == [], "nothing is left in the temporary folder"
