"""Hugging Face: its SDK lists the files; they are transferred here, since the SDK does not resume after `kill -9`."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from toolbox.errors import InputError, NotFoundError
from toolbox.hub.sources import CONNECTIONS, PARTIAL, Entry, Listing, Repo, unreachable
from toolbox.hub.store import KINDS
from toolbox.i18n import _

if TYPE_CHECKING:
    import httpx

STALL_S = 30.0
"""A connection that brings nothing for this long is given up and taken up again where it stood."""
TRIES = 5
"""In a row that bring nothing new."""


class HuggingFace:
    """A Source."""

    name = "huggingface"
    title = "Hugging Face"

    def __init__(self, endpoint: str, stall_s: float = STALL_S, pause_s: float = 1.0) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._stall_s = stall_s
        self._pause_s = pause_s

    def listing(self, repo: Repo) -> Listing:
        from huggingface_hub import HfApi, errors
        from huggingface_hub.hf_api import RepoFile

        api = HfApi(endpoint=self.endpoint)
        try:
            commit = api.repo_info(
                repo.id, revision=repo.revision or None, repo_type=repo.kind, timeout=self._stall_s
            ).sha
            tree = list(api.list_repo_tree(repo.id, recursive=True, revision=commit, repo_type=repo.kind))
        except errors.GatedRepoError as error:
            raise InputError(
                _("Hugging Face does not let us read {id}.").format(id=repo.id),
                _("Accept its terms on {endpoint}/{id}, then set HF_TOKEN.").format(endpoint=self.endpoint, id=repo.id),
            ) from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise NotFoundError(
                _("Hugging Face has no {kind} {id} at revision {revision}, or it is private.").format(
                    kind=_(KINDS[repo.kind]), id=repo.id, revision=repo.revision or "main"
                ),
                _("Check the spelling on {endpoint}, --type, HF_TOKEN, or try --source modelscope.").format(
                    endpoint=self.endpoint
                ),
            ) from error
        except (errors.HfHubHTTPError, errors.HTTPError, OSError, ValueError) as error:
            raise unreachable(self, error) from error
        entries = [
            Entry(file.path, file.size, file.lfs.sha256 if file.lfs else "", "" if file.lfs else file.blob_id)
            for file in tree
            if isinstance(file, RepoFile)
        ]
        return Listing(self.name, self.endpoint, commit or repo.revision, entries)

    def get(self, repo: Repo, entries: Sequence[Entry], folder: Path, progress: Callable[[int], None]) -> None:
        import httpx
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        url = partial(hf_hub_url, repo.id, repo_type=repo.kind, revision=repo.revision, endpoint=self.endpoint)
        stop = threading.Event()
        with (
            httpx.Client(headers=headers, follow_redirects=True, timeout=self._stall_s) as client,
            ThreadPoolExecutor(CONNECTIONS) as pool,
        ):
            transfers = [
                pool.submit(
                    _Transfer(client, url(entry.path), folder / entry.path, entry.size, progress, stop).run,
                    self._pause_s,
                )
                for entry in entries
            ]
            try:
                for transfer in as_completed(transfers):
                    transfer.result()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise unreachable(self, error) from error
            finally:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)


class _Transfer:
    """One file on its way: `target` + PARTIAL grows until it has `size` bytes, then it becomes `target`."""

    def __init__(
        self,
        client: "httpx.Client",
        url: str,
        target: Path,
        size: int,
        progress: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        self._client = client
        self._url = url
        self._target = target
        self._partial = target.with_name(target.name + PARTIAL)
        self._size = size
        self._progress = progress
        self._stop = stop

    def run(self, pause_s: float) -> None:
        """Raises httpx.HTTPError after TRIES attempts in a row that brought nothing new."""
        import httpx

        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._partial.touch()
        self._progress(self._have())
        failures = 0
        while not self._stop.is_set():
            before = self._have()
            if before > self._size:
                self._partial.unlink()
                self._partial.touch()
            elif before == self._size:
                self._partial.replace(self._target)
                return
            try:
                self._receive(self._have())
            except httpx.HTTPError:
                failures = 0 if self._have() > before else failures + 1
                if failures >= TRIES:
                    raise
                time.sleep(pause_s * failures)

    def _have(self) -> int:
        return self._partial.stat().st_size

    def _receive(self, offset: int) -> None:
        """Append what the server sends from `offset` on; start again where it does not honour the range.

        Each attempt asks the hub again, so a signed address that expired on the way is replaced by a fresh one.
        """
        import httpx

        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._client.stream("GET", self._url, headers=headers) as response:
            if response.status_code == 416:
                self._partial.write_bytes(b"")
            response.raise_for_status()
            resumed = response.headers.get("Content-Range", "").startswith(f"bytes {offset}-")
            with self._partial.open("ab" if offset and resumed else "wb") as file:
                left = self._size - file.tell()
                for chunk in response.iter_raw():
                    if len(chunk) > left:
                        raise httpx.RemoteProtocolError("the body is longer than the listing says")
                    file.write(chunk)
                    left -= len(chunk)
                    self._progress(len(chunk))
                    if self._stop.is_set():
                        return
            if left:
                raise httpx.RemoteProtocolError("the body is shorter than the listing says")
