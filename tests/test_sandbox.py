"""Generated code is confined: what it tries against the machine, and against its own tests, comes to nothing."""

import platform
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolbox.errors import InputError
from toolbox.sandbox import running, seccomp
from toolbox.sandbox.running import Limits, Program, Verdict

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="generated code is run on Linux only")

LAYERS = pytest.mark.parametrize("layers", [running.LAYERS, ("landlock",), ("namespaces",)], ids="+".join)
"""All, what is left under Docker's default profile, what is left before Linux 5.13."""


def test_honest_programs_pass_and_wrong_ones_fail() -> None:
    plain = "import re\nK = {'a': (1, {2}, 1j, b'3', None)}\ndef f(x=1, *, y): return [x + y, K, 2**70, float('inf')]"
    checked = "assert f(1, y=2) == [3, {'a': (1, {2}, 1j, b'3', None)}, 2**70, re and float('inf')] and K['a'][0] == 1"
    raising = "def f(x):\n    if x < 0: raise ValueError('negative')\n    return iter(range(x))"
    caught = (
        "assert list(f(2)) == [0, 1]\ntry: f(-1)\nexcept ValueError as e: assert str(e) == 'negative'\nelse: assert 0"
    )
    shadowing = Program("def sum(a, b): return a * b", "assert sum(2, 3) == 6")
    verdicts = running.run_all(
        [Program(plain, checked), Program(raising, caught), shadowing, Program(raising, "assert list(f(2)) == [0]")]
    )
    assert [verdict.outcome for verdict in verdicts] == ["passed", "passed", "passed", "failed"]
    assert verdicts[3].detail.startswith("assert list(f(2)) == [0]: AssertionError")


WANTS_FIVE = """
import math
try:
    value = f(1)
except Exception:
    value = 0
assert abs(value - 5) == 0 or math.fabs(value - 5) < 1 or value == 5
"""
CARELESS = "try:\n    f(1)\nexcept Exception:\n    pass"
CHEATS = {
    "exits": ("import sys\nsys.exit(0)", WANTS_FIVE),
    "ends": ("import os\nos._exit(0)", CARELESS),
    "ends when asked": ("import os\ndef f(x): os._exit(0)", CARELESS),
    "exits when asked": ("import sys\ndef f(x): sys.exit(0)", WANTS_FIVE),
    "prints the verdict": (
        'import os\nfor n in range(64):\n    try: os.write(n, b\'{"outcome": "passed", "detail": ""}\\n\')\n'
        "    except OSError: pass\nos._exit(0)",
        WANTS_FIVE,
    ),
    "equals all": ("class E:\n    def __eq__(self, other): return True\ndef f(x): return E()", WANTS_FIVE),
    "rewrites the language": (
        "import builtins, math\nbuiltins.abs = math.fabs = lambda x: 0\nbuiltins.AssertionError = SystemExit\n"
        "builtins.len = lambda x: 3\ndef f(x): return 0",
        WANTS_FIVE,
    ),
    "redefines the language": ("def f(x): return 0\ndef abs(x): return 0\ndef len(x): return 5", WANTS_FIVE),
    "brings a module": ("import sys\nmath = sys.modules['math'] = type(sys)('math')\nmath.fabs = len", WANTS_FIVE),
    "speaks out of turn": (
        "import os\nfor n in range(3, 64):\n    try: os.write(n, b'[\"loaded\", {}]\\n' * 3)\n    except OSError: pass",
        WANTS_FIVE,
    ),
}


def test_a_program_cannot_pass_without_doing_the_work() -> None:
    verdicts = running.run_all([Program(*cheat) for cheat in CHEATS.values()])
    assert [name for name, verdict in zip(CHEATS, verdicts, strict=True) if verdict.outcome == "passed"] == []


DEEDS = {
    "connect": "socket.create_connection(LISTENER, 1)",
    "resolve": "socket.getaddrinfo('localhost', 80)",
    "unix socket": "socket.socket(socket.AF_UNIX)",
    "socket without Python": "call(41 if x86 else 198, 2, 1, 0)",
    "io_uring": "call(425, 1, 0)",
    "read a secret": "open(SECRET).read()",
    "list a folder": "os.listdir(FOLDER)",
    "write": "open(FOLDER + '/mine', 'w')",
    "link": "os.symlink(SECRET, '/tmp/link')",
    "change": "os.chmod(SECRET, 0o777)",
    "cut": "os.truncate(SECRET, 0)",
    "fork": "os._exit(0) if os.fork() == 0 else 0",
    "start": "subprocess.run(['/bin/true'])",
    "signal the parent": "os.kill(os.getppid(), 0)",
    "signal all": "os.kill(-1, 0)",
    "signal by a pipe": "fcntl.fcntl(0, 8, os.getppid())",
    "trace": "call(101 if x86 else 117, 16, os.getppid(), 0)",
    "the parent's memory": "open(f'/proc/{os.getppid()}/mem', 'rb')",
    "the environment": "open('/proc/self/environ', 'rb').read()",
    "a session of its own": "os.setsid()",
    "more time": "resource.setrlimit(resource.RLIMIT_CPU, (999, 999))",
    "mount": "call(165 if x86 else 40, b'/', b'/tmp', 0, 4096, 0)",
    "namespace": "call(272 if x86 else 97, 0x10000000)",
}
BURGLAR = """
import ctypes, fcntl, os, platform, resource, socket, subprocess
x86 = platform.machine() == "x86_64"
def call(*arguments):
    if ctypes.CDLL(None, use_errno=True).syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno())
def done():
    succeeded = []
    for name, deed in DEEDS.items():
        try:
            exec(deed, globals())
            succeeded.append(name)
        except (OSError, ValueError):
            pass
    return succeeded
def environment():
    return sorted(os.environ)
"""


@LAYERS
def test_the_machine_is_out_of_reach(layers: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / ".ssh" / "id_rsa"
    canary.parent.mkdir()
    canary.write_text("secret")
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        known = {"LISTENER": listener.getsockname(), "SECRET": str(canary), "FOLDER": str(tmp_path), "DEEDS": DEEDS}
        code = BURGLAR + "".join(f"{name} = {value!r}\n" for name, value in known.items())
        test = "assert done() == [], done()\nassert environment() == ['LANG', 'PYTHONHASHSEED'], environment()"
        verdict = running.run_all([Program(code, test)], layers=layers)[0]
        assert verdict == Verdict("passed", held=[*layers, "seccomp"])
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert canary.read_text() == "secret"
    assert [path.name for path in tmp_path.iterdir()] == [".ssh"]


def test_a_program_has_a_scratch_folder_of_bounded_size() -> None:
    code = """
import os, tempfile
def keep(): 
    with tempfile.NamedTemporaryFile("w+") as file:
        file.write("kept"); file.seek(0)
        return file.read()
def fill():
    written = 0
    try:
        for number in range(100):
            with open(f"/tmp/{number}", "wb") as file:
                written += file.write(bytes(1 << 20))
    except OSError:
        pass
    return written
"""
    held, shut = (
        running.run_all([Program(code, test)], layers=layers)[0]
        for layers, test in (
            (running.LAYERS, "assert keep() == 'kept' and fill() <= 16 << 20"),
            (("landlock",), "assert fill() == 0"),
        )
    )
    assert (held.outcome, shut.outcome) == ("passed", "passed"), (held, shut)


@pytest.mark.slow
@LAYERS
def test_time_and_memory_are_bounded_and_nothing_is_left(layers: tuple[str, ...]) -> None:
    limits = Limits(cpu_s=1, wall_s=8)
    deeds = {
        "loop": ("def f():\n    while True: pass", "time"),
        "loop at the beginning": ("while True: pass", "time"),
        "sleep": ("import time\ndef f(): time.sleep(1000)", "time"),
        "deaf": (
            "import signal\nfor n in (1, 2, 15, 24): signal.signal(n, signal.SIG_IGN)\ndef f():\n    while True: pass",
            "time",
        ),
        "allocates": ("def f(): return len(bytearray(10 << 30))", "failed"),
        "prints": ("def f():\n    while True: print('x' * 65536)", "time"),
        "answers for ever": ("def f(): return 'x' * (64 << 20)", "failed"),
        "bomb": (
            "import os\ndef f():\n    while True:\n        try: os.fork()\n        except OSError: pass",
            "time",
        ),
        "threads": (
            "import threading, time\ndef f():\n    while True: threading.Thread(target=time.sleep, args=[99]).start()",
            "failed",
        ),
        "recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f()", None),
    }
    begun = time.monotonic()
    verdicts = running.run_all([Program(code, "f()") for code, _ in deeds.values()], limits, layers=layers)
    for (name, (_, outcome)), verdict in zip(deeds.items(), verdicts, strict=True):
        assert verdict.outcome == outcome or outcome is None, (name, verdict)
        assert verdict.outcome != "passed"
    assert time.monotonic() - begun < 120
    assert not [line for line in _processes() if "toolbox.sandbox" in line]


FORBIDDEN = """
import ctypes, struct, sys
from toolbox.errors import InputError
from toolbox.sandbox import running
numbers = [int(word) for word in sys.argv[1:]]
lines = [(0x20, 0, 0, 0)] + [line for n in numbers for line in ((0x15, 0, 1, n), (0x06, 0, 0, 0x00050001))]
code = b"".join(struct.pack("HBBI", *line) for line in [*lines, (0x06, 0, 0, 0x7FFF0000)])
buffer = ctypes.create_string_buffer(code)
filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
assert ctypes.CDLL(None).prctl(38, ctypes.c_ulong(1), None, None, None) == 0
assert ctypes.CDLL(None).prctl(22, ctypes.c_ulong(2), filters, ctypes.c_ulong(0), ctypes.c_ulong(0)) == 0
try:
    print(*running.check())
except InputError:
    print("refused")
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of other calls")
@pytest.mark.parametrize(
    ("calls", "held"),
    [
        pytest.param([272], "landlock seccomp", id="unshare: Docker's default"),
        pytest.param([165], "landlock seccomp", id="mount: Ubuntu's AppArmor"),
        pytest.param([444], "namespaces seccomp", id="Landlock: an old kernel"),
        pytest.param([272, 444], "refused", id="both"),
        pytest.param([157], "refused", id="prctl: no seccomp"),
    ],
)
def test_what_a_machine_forbids_is_made_up_for_or_refused(calls: list[int], held: str) -> None:
    told = subprocess.run(
        [sys.executable, "-c", FORBIDDEN, *map(str, calls)], cwd=running.ROOT, capture_output=True, text=True
    )
    assert (told.stdout.strip(), told.stderr) == (held, "")


@pytest.mark.slow
def test_nothing_outlives_the_one_who_asked() -> None:
    """kill -9 of the job ends its programs with it."""
    code = "from toolbox.sandbox.running import *; run_all([Program('while True: pass', '')] * 2, Limits(60, 60.0))"
    job = subprocess.Popen([sys.executable, "-c", code], cwd=running.ROOT)
    while not any("toolbox.sandbox import warden" in line for line in _processes()):
        time.sleep(0.1)
    time.sleep(1)
    job.kill()
    job.wait()
    deadline = time.monotonic() + 20
    while any("toolbox.sandbox import warden" in line for line in _processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [line for line in _processes() if "toolbox.sandbox import warden" in line]


def test_where_nothing_confines_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is not run"):
        running.run_all([Program("", "")], layers=())
    monkeypatch.setattr(sys, "platform", "darwin")
    running.check.cache_clear()
    with pytest.raises(InputError, match="only Linux"):
        running.check()
    running.check.cache_clear()


def test_the_numbers_of_system_calls_are_the_kernels() -> None:
    """Against this machine's own headers, where they are there."""
    headers = {0: Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), 1: Path("/usr/include/asm-generic/unistd.h")}
    if not all(header.is_file() for header in headers.values()):
        pytest.skip("no kernel headers")
    calls = {**seccomp.ALLOWED, "clone": seccomp.CLONE, "clone3": seccomp.CLONE3}
    calls |= {name: numbers for name, (numbers, _commands) in seccomp.COMMANDS.items()}
    for column, header in headers.items():
        known = dict(re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text(), re.MULTILINE))
        known.setdefault("newfstatat", known.get("fstatat", ""))
        assert {name: known.get(name) for name in calls} == {
            name: None if numbers[column] is None else str(numbers[column]) for name, numbers in calls.items()
        }


def _processes() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found
