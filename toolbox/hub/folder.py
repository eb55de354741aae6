"""Repositories in a folder of this machine or of a network disk: another home, what a hub's own client keeps."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from toolbox import files
from toolbox.errors import NotFoundError
from toolbox.hub import store
from toolbox.hub.sources import PARTIAL, PARTS, BrokenOffError, Entry, Listing, Read, Repo
from toolbox.hub.store import KINDS, Kind
from toolbox.i18n import _

SHA256_DIGITS = 64


class Folder:
    """A Source. It finds `OWNER/NAME`, below `models` or `datasets` too, and the layouts of both hubs' caches."""

    def __init__(self, path: Path) -> None:
        self.name = self.title = self.endpoint = str(path)
        self._path = path

    def listing(self, repo: Repo) -> Listing:
        place = self._find(repo)
        manifest = store.read_manifest(place) if place else None
        revision = manifest.revision if manifest else place.name if place and place.parent.name == "snapshots" else ""
        if place is None or repo.revision not in ("", revision):
            raise NotFoundError(
                _("{path} has no {kind} {id}.").format(path=self._path, kind=_(KINDS[repo.kind]), id=repo.id),
                _("It looks for OWNER/NAME, below models or datasets too."),
            )
        known = {record.path: record for record in manifest.files if record.unchanged(place)} if manifest else {}
        entries = []
        for file in sorted(place.rglob("*")):
            path = str(file.relative_to(place))
            if not file.is_file() or path.endswith((PARTIAL, PARTS)) or path == store.MANIFEST:
                continue
            sha256, git_sha1 = (known[path].sha256, "") if path in known else _named_after(file)
            entries.append(Entry(path, file.stat().st_size, sha256, git_sha1))
        return Listing(self.name, self.endpoint, revision, entries)

    def reading(self, repo: Repo) -> AbstractContextManager[Read]:
        place = self._find(repo) or self._path

        @contextmanager
        def read(entry: Entry, start: int, stop: int) -> Iterator[Iterator[bytes]]:
            yield _pieces(place / entry.path, start, stop)

        return nullcontext(read)

    def has(self, kind: Kind, repo_id: str) -> bool:
        return self._find(Repo(kind, repo_id, "")) is not None

    @staticmethod
    def may_be(mine: Entry | None, entry: Entry) -> bool:
        """Whether a file that is here may have the content of a listed one, whose hash will prove it."""
        alike = mine is not None and mine.size == entry.size and entry.hashed
        return alike and (not mine.hashed or mine.identity in (entry.sha256, entry.git_sha1))  # type: ignore[union-attr]

    def _find(self, repo: Repo) -> Path | None:
        owner, name = repo.id.split("/")
        cache = self._path / f"{repo.kind}s--{owner}--{name}"
        snapshot = cache / "snapshots" / (repo.revision or _text(cache / "refs" / "main") or "none")
        newer = self._path / f"{repo.kind}s" / f"{owner}--{name}" / "snapshots" / (repo.revision or "master")
        below = [self._path / f"{repo.kind}s", self._path]
        places = [root / owner / spelt for root in below for spelt in (name, name.replace(".", "___"))]
        return next((place for place in [*places, snapshot, newer] if place.is_dir()), None)


def caches(environ: Mapping[str, str], exists: Callable[[Path], bool] = Path.is_dir) -> list[Folder]:
    """Where the hubs' own clients keep what they fetched, as far as that is there."""
    cache = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    huggingface = Path(environ.get("HF_HOME") or cache / "huggingface") / "hub"
    modelscope = Path(environ.get("MODELSCOPE_CACHE") or cache / "modelscope")
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    found = [Path(named or huggingface), modelscope / "hub", modelscope]
    return [Folder(path) for path in found if exists(path)]


def _named_after(file: Path) -> tuple[str, str]:
    """(SHA-256, git's SHA-1): Hugging Face's cache links to files that have their hash for a name."""
    blob = file.resolve().name if file.is_symlink() else ""
    if file.is_symlink() and file.resolve().parent.name == "blobs":
        return (blob, "") if len(blob) == SHA256_DIGITS else ("", blob)
    return "", ""


def _pieces(file: Path, start: int, stop: int) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            while start < stop:
                piece = stream.read(min(files.CHUNK, stop - start))
                if not piece:
                    raise EOFError
                start += len(piece)
                yield piece
    except (OSError, EOFError) as error:
        raise BrokenOffError from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
