"""Checkouts of the start script with stand-in locks, whose tiny wheels it really installs."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.conftest import ROOT, Answer

PYTHON = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
MAIN = "import json, os, sys, tiny; print(json.dumps([tiny.VERSION, os.getcwd(), sys.flags.safe_path, sys.argv[1:]]))"


def wheel(folder: Path, version: str) -> str:
    """A wheel `tiny` of that version; returns its lock line."""
    path = folder / f"tiny-{version}-py3-none-any.whl"
    info = f"tiny-{version}.dist-info"
    texts = {
        "tiny.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in texts.items():
            archive.writestr(zipfile.ZipInfo(name), text)  # of one date, so that its hash is the same wherever made
    return f"tiny=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Checkout:
    """A folder with the script, stand-in locks, and a toolbox/ that says how it was called."""

    def __init__(self, root: Path, wheels: Path) -> None:
        self.root = root
        (root / "locks").mkdir(parents=True)
        (root / "toolbox").mkdir()
        (root / "toolbox" / "__main__.py").write_text(MAIN)
        shutil.copy(ROOT / "yichuidingyin.sh", root)
        for name, version in (("cpu", "1.0"), ("cuda", "2.0")):
            (root / "locks" / f"{name}.txt").write_text(wheel(wheels, version))
        # Only the settings given here reach pip, as a person's own configuration would.
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(root.parent),
            "LANG": "en_US.UTF-8",
            "YCDY_PYTHON": PYTHON,
            "YCDY_LOCK": "cpu",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
        }

    @property
    def env(self) -> Path:
        return self.root / ".venv"

    def command(self, *words: str, script: Path | None = None, **environ: str) -> tuple[list[str], dict[str, str]]:
        settings = {name: value for name, value in {**self.environ, **environ}.items() if value}
        return ["bash", str(script or self.root / "yichuidingyin.sh"), *words], settings

    def start(self, *words: str, script: Path | None = None, cwd: Path | None = None, **environ: str) -> Answer:
        command, settings = self.command(*words, script=script, **environ)
        done = subprocess.run(
            command, env=settings, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100
        )
        return Answer(done.returncode, done.stdout, done.stderr)


def new_checkout(folder: Path, empty: Path) -> Checkout:
    """A checkout, not prepared yet. Its Python makes the `empty` environment once and copies it: it saves seconds."""
    (folder / "wheels").mkdir()
    checkout = Checkout(folder / "一锤 定音", folder / "wheels")
    python = folder / "python"
    python.write_text(
        "#!/bin/bash\n"
        f'[ "$1 $2" = "-m venv" ] || exec "{PYTHON}" "$@"\n'
        f'[ -d "{empty}" ] || "{PYTHON}" -m venv "{empty}"\n'
        f'cp -a "{empty}/." "$3"\n'
    )
    python.chmod(0o755)
    checkout.environ["YCDY_PYTHON"] = str(python)
    return checkout
