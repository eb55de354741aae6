"""yichuidingyin.sh, for real, in checkouts under a path with a space and Chinese; their locks name tiny wheels."""

import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkouts import Checkout, new_checkout

TOOLS = [
    "awk",
    "bash",
    "cat",
    "cmp",
    "cp",
    "df",
    "dirname",
    "find",
    "grep",
    "mkdir",
    "mv",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "uname",
]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("empty") / "env"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, empty: Path) -> Checkout:
    """A checkout whose first start made the environment, which tests leave as it is.

    It had few programs at hand, modules in its way, and a pip that installs for the user; everybody could write.
    """
    folder = tmp_path_factory.mktemp("prepared")
    checkout = new_checkout(folder, empty)
    for name in ("random", "venv", "pip", "fcntl", "importlib"):
        (folder / f"{name}.py").write_text("raise SystemExit('the folder it is started in shadows a module')")
    before = os.umask(0)
    first = checkout.start("plan", "a b", PATH=bare_path(folder / "bin"), PIP_USER="1", cwd=folder).done()
    os.umask(before)
    assert "First start: preparing" in first.err
    assert first.json == ["1.0", str(folder), True, ["plan", "a b"]]
    assert not (checkout.env / "history.tsv").stat().st_mode & 0o022
    return checkout


@pytest.fixture
def checkout(tmp_path: Path, empty: Path) -> Checkout:
    return new_checkout(tmp_path, empty)


@pytest.fixture
def started(checkout: Checkout, prepared: Checkout) -> Checkout:
    """A checkout after its first start: with a copy of what the prepared one's made, which is seconds cheaper."""
    shutil.copytree(prepared.env, checkout.env, symlinks=True)
    assert checkout.start().done().err == ""
    return checkout


def bare_path(folder: Path, **programs: str) -> str:
    """A PATH with the few tools the script needs, no Python, and the given programs on top."""
    folder.mkdir()
    for tool in TOOLS:
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    for name, text in programs.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_a_later_start_hands_over_at_once_and_offline(prepared: Checkout) -> None:
    again = prepared.start(PIP_FIND_LINKS="", YCDY_PYTHON="", YCDY_LOCK="").done()
    assert again.err == ""
    assert again.json[0] == "1.0"


def test_it_needs_no_python_and_no_pip_to_see_that_it_is_prepared(prepared: Checkout, tmp_path: Path) -> None:
    prepared.start(PATH=bare_path(tmp_path / "bin"), YCDY_PYTHON="").done()


def test_every_word_arrives_as_it_was_typed(prepared: Checkout) -> None:
    words = ["finetune", "a  b", "", "*", "$(touch x)", "`id`", "模型", "-x", "line\nbreak", "'", '"']
    assert prepared.start(*words).done().json[3] == words


def test_from_another_folder_through_links(prepared: Checkout, tmp_path: Path) -> None:
    (tmp_path / "link.sh").symlink_to(prepared.root / "yichuidingyin.sh")
    (tmp_path / "relative.sh").symlink_to("link.sh")
    (tmp_path / "toolbox.py").write_text("raise SystemExit('the folder it is started in shadows the package')")
    assert prepared.start(script=tmp_path / "relative.sh", cwd=tmp_path).done().json[1] == str(tmp_path)
    assert prepared.start(script=Path("relative.sh"), cwd=tmp_path).done().json[1] == str(tmp_path)


def test_a_persons_python_settings_do_not_leak_in(prepared: Checkout, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text("VERSION = 'another'")
    assert prepared.start(PYTHONPATH=str(tmp_path), PYTHONHOME=str(tmp_path), CDPATH="/").done().json[0] == "1.0"


def test_no_python(checkout: Checkout, tmp_path: Path) -> None:
    path = bare_path(tmp_path / "bin", python3='echo "$@"; exit 1')
    answer = checkout.start(PATH=path, YCDY_PYTHON="")
    assert (answer.status, answer.err.splitlines()[0]) == (2, "✗ There is no Python 3.11.")
    chinese = checkout.start("--lang", "zh", PATH=path, YCDY_PYTHON="")
    assert (chinese.status, chinese.err.splitlines()[0]) == (2, "✗ 找不到 Python 3.11。")
    assert len(answer.err.splitlines()) == len(chinese.err.splitlines()) == 2
    error = checkout.start("doctor", "--json", PATH=path, YCDY_PYTHON="").json["error"]
    assert error["kind"] == "input"
    assert error["message"] == "There is no Python 3.11."
    assert "YCDY_PYTHON" in error["remedy"]


def test_a_python_without_its_venv_module(checkout: Checkout, tmp_path: Path) -> None:
    path = bare_path(tmp_path / "bin", **{"python3.11": "case $2 in *ensurepip*) exit 1 ;; esac; exit 0"})
    answer = checkout.start(PATH=path, YCDY_PYTHON="")
    assert answer.status == 2
    assert answer.err == "✗ python3.11 has no venv module.\n  → Install it: apt install python3.11-venv.\n"


def test_no_disk(checkout: Checkout, tmp_path: Path) -> None:
    path = bare_path(
        tmp_path / "bin", df='echo "Filesystem 1024-blocks Used Available"; echo "/dev/x 9 9 204800 99% /"'
    )
    answer = checkout.start(PATH=path)
    assert answer.status == 2
    assert "has 200 MB free, the environment takes 4 GB" in answer.err
    assert not checkout.env.exists()


def test_no_network(checkout: Checkout) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        index = f"http://127.0.0.1:{closed.getsockname()[1]}/simple"
        answer = checkout.start(PIP_NO_INDEX="", PIP_FIND_LINKS="", PIP_INDEX_URL=index, PIP_RETRIES="0")
    assert answer.status == 2
    assert "✗ The package index can't be reached" in answer.err
    assert checkout.start().done().json[0] == "1.0"


def test_a_package_with_another_hash_is_refused(started: Checkout) -> None:
    lock = started.root / "locks" / "cpu.txt"
    right = lock.read_text()
    lock.write_text((started.root / "locks" / "cuda.txt").read_text()[:-9] + "00000000\n")
    answer = started.start("--lang=zh")
    assert answer.status == 1
    assert "✗ 下载到的软件包与锁文件的哈希不符，已拒绝。" in answer.err
    lock.write_text(right)
    assert started.start().done().json[0] == "1.0"


def test_a_first_start_cut_off_is_made_good_by_the_next(checkout: Checkout) -> None:
    command, settings = checkout.command()
    for delay in (0.0, 0.2, 0.6):
        cut = subprocess.Popen(
            command, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while not checkout.env.exists() and cut.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        os.killpg(cut.pid, signal.SIGKILL)
        cut.wait()
        if (checkout.env / "preparing").exists():
            # What a half-made environment holds is not to be relied on: it is made anew.
            (checkout.env / "left").touch()
    assert checkout.start().done().json[0] == "1.0"
    assert not (checkout.env / "left").exists()
    assert not (checkout.env / "preparing").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(started: Checkout) -> None:
    (started.env / "bin" / "python").unlink()
    (started.env / "bin" / "python").symlink_to("/nowhere/python3.11")
    answer = started.start().done()
    assert "preparing" in answer.err
    assert answer.json[0] == "1.0"


def test_two_first_starts_at_once_prepare_once(checkout: Checkout) -> None:
    command, settings = checkout.command()
    both = [
        subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    answers = [(*process.communicate(timeout=100), process.returncode) for process in both]
    assert [json.loads(out)[0] for out, _, _ in answers] == ["1.0", "1.0"]
    assert sum("Installing locks/cpu.txt" in err for _, err, _ in answers) == 1


def test_a_changed_lock_is_installed_on_the_next_start(started: Checkout) -> None:
    shutil.copy(started.root / "locks" / "cuda.txt", started.root / "locks" / "cpu.txt")
    assert started.start().done().json[0] == "2.0"
    assert started.start().done().err == ""


def history(checkout: Checkout) -> list[list[str]]:
    return [line.split("\t")[1:] for line in (checkout.env / "history.tsv").read_text().splitlines()]


@pytest.mark.slow
def test_a_change_is_taken_back_at_once_offline_and_stays_taken_back(checkout: Checkout) -> None:
    assert checkout.start("--rollback").status == 2
    checkout.start().done()
    refused = checkout.start("--rollback")
    assert (refused.status, "nothing to go back to" in refused.err) == (2, True)
    first = (checkout.root / "locks" / "cpu.txt").read_bytes()
    shutil.copy(checkout.root / "locks" / "cuda.txt", checkout.root / "locks" / "cpu.txt")
    assert checkout.start().done().json[0] == "2.0"
    second = (checkout.root / "locks" / "cpu.txt").read_bytes()
    digests = [hashlib.sha256(text).hexdigest() for text in (first, second)]
    assert history(checkout) == [["cpu", digest, "?"] for digest in digests]
    checkout.start("--rollback", PIP_FIND_LINKS="").done()
    assert history(checkout) == [["cpu", digests[0], "?"]]
    again = checkout.start(PIP_FIND_LINKS="").done()
    assert (again.json[0], again.err) == ("1.0", "")  # pinned: the newer lock does not bring it back
    checkout.start("--rollback", PIP_FIND_LINKS="").done()
    assert checkout.start(PIP_FIND_LINKS="").done().json[0] == "2.0"
    assert not (checkout.env / "pinned").exists()
    checkout.start("--rollback").done()
    checkout.start("--prepare").done()
    assert checkout.start().done().json[0] == "2.0"


def test_a_pinned_environment_stays_as_it_is(started: Checkout) -> None:
    started.start("--pin").done()
    shutil.copy(started.root / "locks" / "cuda.txt", started.root / "locks" / "cpu.txt")
    assert started.start(PIP_FIND_LINKS="").done().json[0] == "1.0"


@pytest.mark.slow
def test_a_change_that_was_cut_off_begins_again_from_what_was_there(checkout: Checkout) -> None:
    checkout.start().done()
    shutil.copytree(checkout.env, checkout.env.with_name(".venv.kept"), symlinks=True)  # as the killed start left it
    (checkout.env / "preparing").touch()
    (checkout.env / "half").touch()
    shutil.copy(checkout.root / "locks" / "cuda.txt", checkout.root / "locks" / "cpu.txt")
    assert checkout.start().done().json[0] == "2.0"
    assert not (checkout.env / "half").exists()
    checkout.start("--rollback").done()
    assert checkout.start().done().json[0] == "1.0"


def test_an_environment_of_somebody_elses_is_left_alone(checkout: Checkout) -> None:
    (checkout.env / "bin").mkdir(parents=True)
    (checkout.env / "theirs").touch()
    answer = checkout.start()
    assert answer.status == 2
    assert "was not made by this script, and is left alone" in answer.err
    assert (checkout.env / "theirs").exists()


def test_a_named_environment_is_used_as_it_is(prepared: Checkout, checkout: Checkout) -> None:
    assert checkout.start(YCDY_ENV=str(prepared.env), PIP_FIND_LINKS="").done().json[0] == "1.0"
    assert not checkout.env.exists()
    answer = checkout.start(YCDY_ENV="/nowhere")
    assert (answer.status, "There is no Python in /nowhere" in answer.err) == (2, True)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="the locks of Linux on x86_64")
def test_an_nvidia_gpu_that_answers_takes_the_cuda_lock(checkout: Checkout, tmp_path: Path) -> None:
    df = "echo; echo / 0 0 99999999"
    broken = bare_path(tmp_path / "broken", **{"nvidia-smi": "echo no driver; exit 9", "df": df})
    answers = bare_path(tmp_path / "answers", **{"nvidia-smi": "echo GPU 0", "df": df})
    assert checkout.start(PATH=broken, YCDY_LOCK="").done().json[0] == "1.0"
    assert checkout.start(PATH=answers, YCDY_LOCK="").done().json[0] == "1.0", "what is prepared stays"
    assert checkout.start(PATH=answers, YCDY_LOCK="cuda").done().json[0] == "2.0", "until asked for by name"
    shutil.rmtree(checkout.env)
    assert checkout.start(PATH=answers, YCDY_LOCK="").done().json[0] == "2.0"


def test_prepare_installs_further_locks_on_top(started: Checkout) -> None:
    (started.root / "locks" / "dev.txt").write_text((started.root / "locks" / "cuda.txt").read_text())
    assert started.start("--prepare", "dev").done().out == ""
    assert started.start().done().json[0] == "2.0"
    assert started.start("--prepare", "dev").done().err == ""
    assert started.start("--prepare", "no-such").status == 2
    (started.root / "locks" / "docs.txt").write_text((started.root / "locks" / "cuda.txt").read_text() + "# more\n")
    again = started.start("--prepare", "docs", PIP_FIND_LINKS="").done()
    assert len(again.err.splitlines()) == 1, "what is there is neither asked for nor told of"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are closed."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="starts the script as another user")
def test_where_the_checkout_can_not_be_written_the_home_folder_holds_the_environment(open_folder: Path) -> None:
    (open_folder / "wheels").mkdir()
    (open_folder / "home").mkdir()
    os.chown(open_folder / "home", 65534, 65534)
    made = Checkout(open_folder / "repo", open_folder / "wheels")
    nobody = {"user": 65534, "group": 65534, "cwd": "/", "capture_output": True, "text": True}
    command, settings = made.command(YCDY_HOME=str(open_folder / "home"), YCDY_PYTHON="", PATH="/usr/bin:/bin")
    if subprocess.run(["python3.11", "-c", "import ensurepip"], env=settings, **nobody).returncode:
        pytest.skip("the system has no Python 3.11 of its own that every user can run")
    done = subprocess.run(command, env=settings, **nobody)
    assert done.returncode == 0, done.stderr
    assert (open_folder / "home" / "env" / "locks" / "cpu.txt").exists()
    assert not made.env.exists()
