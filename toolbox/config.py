"""Where things lie (the home folder) and the person's settings."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from toolbox import files
from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.options import option

DATA_DISKS = ("/root/autodl-tmp", "/mnt/workspace")
"""Large disks that rented boxes mount beside a small system disk (AutoDL; ModelScope and PAI notebooks)."""


class Settings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What `config set` can change; kept in HOME/settings.json."""

    lang: Annotated[Literal["", "zh", "en"], option(N_("Language of all messages; empty: from LANG"))] = ""
    source: Annotated[
        Literal["auto", "modelscope", "huggingface"], option(N_("Where models and data sets are fetched from"))
    ] = "auto"
    modelscope_endpoint: Annotated[str, option(N_("ModelScope address, with the scheme"))] = "https://www.modelscope.cn"
    huggingface_endpoint: Annotated[str, option(N_("Hugging Face address, or that of a mirror"))] = (
        "https://huggingface.co"
    )
    mirrors: Annotated[
        str, option(N_("More places to fetch from, with , between them: folders of OWNER/NAME, hf::URL, ms::URL"))
    ] = ""
    limit_rate: Annotated[
        str, option(N_("Bytes a second of whatever fetches, over all connections, like 10M or 500K; empty: no limit"))
    ] = ""
    plugins: Annotated[str, option(N_("Plugin files that are always loaded, with : between them"))] = ""
    price_per_hour: Annotated[float, option(N_("Price of an hour of this machine, in your money"), ge=0)] = 0.0
    chat_history: Annotated[
        bool, option(N_("Whether what you type in chat is remembered for the next one, in HOME/chats/history"))
    ] = False
    tensorboard_dir: Annotated[str, option(N_("Folder of TensorBoard files; empty: inside each run"))] = ""


class Home(msgspec.Struct, frozen=True):
    """The folder that holds everything a person makes; created on first use, readable by its owner only."""

    path: Path

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def datasets(self) -> Path:
        return self.path / "datasets"

    @property
    def recipes(self) -> Path:
        return self.path / "recipes"

    @property
    def engines(self) -> Path:
        return self.path / "engines"

    def prepare(self) -> "Home":
        """Create the folder. Raises InputError where that can't be done."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                _("The data folder {path} can't be made: {reason}.").format(path=self.path, reason=error.strerror),
                _("Name another one with --home DIR or YCDY_HOME."),
            ) from error
        return self

    def load_settings(self) -> Settings:
        """The settings; a torn or unknown file yields the defaults (`settings_torn` tells)."""
        try:
            return msgspec.json.decode((self.path / "settings.json").read_bytes(), type=Settings)
        except (OSError, msgspec.DecodeError):
            return Settings()

    def settings_torn(self) -> bool:
        try:
            msgspec.json.decode((self.path / "settings.json").read_bytes(), type=Settings)
        except FileNotFoundError:
            return False
        except (OSError, msgspec.DecodeError):
            return True
        return False

    def save_settings(self, settings: Settings) -> None:
        files.write_json(self.prepare().path / "settings.json", settings)

    def load_answers(self) -> dict[str, dict[str, str]]:
        """The last answers given in the menu, by verb and option; none where the file is absent or torn."""
        try:
            return msgspec.json.decode((self.path / "answers.json").read_bytes(), type=dict[str, dict[str, str]])
        except (OSError, msgspec.DecodeError):
            return {}

    def save_answers(self, answers: dict[str, dict[str, str]]) -> None:
        files.write_json(self.prepare().path / "answers.json", answers)


def find_home(chosen: str | None = None, environ: Mapping[str, str] = os.environ) -> Home:
    """`--home`, else YCDY_HOME, else a cloud box's data disk, else ~/yichuidingyin."""
    if named := chosen or environ.get("YCDY_HOME"):
        return Home(Path(named).expanduser().absolute())
    for disk in DATA_DISKS:
        if os.access(disk, os.W_OK):
            return Home(Path(disk) / "yichuidingyin")
    return Home(Path.home() / "yichuidingyin")


def called() -> list[str]:
    """The words that call this program, as the person did."""
    return ["bash", os.environ.get("YCDY_CALLED") or "yichuidingyin.sh"]


def command_line(home: Path, *words: str) -> str:
    """A line that can be copied as it stands: it names the home folder where that is not found by itself."""
    named = [] if home.resolve() == find_home().path.resolve() else ["--home", str(home)]
    return shlex.join([*called(), *words, *named])
