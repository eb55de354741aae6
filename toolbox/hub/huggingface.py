"""Hugging Face, or a mirror of it: its SDK lists; `web` brings, since the SDK begins anew after `kill -9`."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

from toolbox.errors import HubError, InputError, NotFoundError
from toolbox.hub import web
from toolbox.hub.sources import ODD, STALL_S, Entry, Listing, Read, Repo, address, entries, no_listing, unreachable
from toolbox.hub.store import KINDS
from toolbox.i18n import _

BUSY = (429, 500, 502, 503, 504)
"""What passes: a hub that answers so is asked again."""
PAGE_S = 10.0
"""For a page of a listing; the SDK asks six times."""
WAITS_S = (1.0, 4.0)
"""Before the second and the third time, unless the hub names a time of its own."""
_ONE_AT_A_TIME = threading.Lock()


class HuggingFace:
    """A Source."""

    title = "Hugging Face"

    def __init__(self, endpoint: str, stall_s: float = STALL_S, name: str = "huggingface", token: bool = True) -> None:
        """`token`: whether HF_TOKEN may be shown to it."""
        self.name = name
        self.endpoint = address(endpoint)
        self._stall_s = stall_s
        self._token = None if token else False

    def listing(self, repo: Repo) -> Listing:
        with _ONE_AT_A_TIME:  # the SDK's client is one for all threads
            _bound()
        from huggingface_hub import errors

        try:
            return self._listed(repo)
        except errors.OfflineModeIsEnabled as error:
            raise HubError(
                _("Hugging Face is not asked: HF_HUB_OFFLINE is set."), _("Unset it to fetch what is not here.")
            ) from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            if isinstance(error, errors.GatedRepoError):
                raise self._denied(repo) from error
            raise NotFoundError(
                _("Hugging Face has no {kind} {id} at revision {revision}, or it is private.").format(
                    kind=_(KINDS[repo.kind]), id=repo.id, revision=repo.revision or "main"
                ),
                _("Check the spelling on {endpoint}, --type, HF_TOKEN, or try --source modelscope.").format(
                    endpoint=self.endpoint
                ),
            ) from error
        except (errors.HfHubHTTPError, errors.HTTPError, OSError) as error:
            if _status(error) in web.DENIED:
                raise self._denied(repo) from error
            raise unreachable(self, error) from error
        except ODD as error:
            raise unreachable(self, no_listing()) from error

    def _listed(self, repo: Repo) -> Listing:
        """Raises what the SDK raises, and ODD."""
        from huggingface_hub import HfApi
        from huggingface_hub.hf_api import RepoFile

        api = HfApi(endpoint=self.endpoint, token=self._token)
        about = _insist(
            lambda: api.repo_info(repo.id, revision=repo.revision or None, repo_type=repo.kind, timeout=self._stall_s)
        )
        commit = about.sha or ""
        if commit and not commit.isalnum():  # it becomes part of addresses
            raise ValueError(commit)
        tree = api.list_repo_tree(repo.id, recursive=True, revision=commit or None, repo_type=repo.kind)
        files: dict[str, Any] = {}
        for file in tree:
            if file.path in files:  # pages that lead back to themselves never end
                raise ValueError(file.path)
            if isinstance(file, RepoFile):
                hashed = {"sha256": file.lfs.sha256} if file.lfs else {"git_sha1": file.blob_id}
                files[file.path] = {"path": file.path, "size": file.size, "version": commit, **hashed}
        return Listing(self.name, self.endpoint, commit or repo.revision, entries(files.values()))

    def reading(self, repo: Repo) -> AbstractContextManager[Read]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        def place(entry: Entry) -> str:
            return hf_hub_url(repo.id, entry.path, repo_type=repo.kind, revision=repo.revision, endpoint=self.endpoint)

        headers = build_hf_headers(token=self._token)
        secrets = {name: headers.pop(name) for name in list(headers) if name.lower() == "authorization"}
        return web.reading(headers, secrets, place, self._denied(repo), direct=False, stall_s=self._stall_s)

    def _denied(self, repo: Repo) -> InputError:
        """Of a repository whose terms have to be accepted anybody may list the files, and nobody else read them."""
        from huggingface_hub import get_token

        page = f"{self.endpoint}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.id}"
        if self._token is False:
            remedy = _("A mirror that is named by its address gets no token: name it in HF_ENDPOINT for that.")
        elif get_token():
            remedy = _("Accept its terms on {page} with the account of your token; see also that HF_TOKEN still holds.")
        else:
            remedy = _("Accept its terms on {page}, then set HF_TOKEN.")
        return InputError(_("Hugging Face does not let us read {id}.").format(id=repo.id), remedy.format(page=page))


def _insist(ask: Callable[[], Any]) -> Any:
    """What `ask` returns, in the end; what else it raises is raised at once."""
    from huggingface_hub.errors import HfHubHTTPError

    for wait_s in WAITS_S:
        try:
            return ask()
        except HfHubHTTPError as error:
            if _status(error) not in BUSY:
                raise
            time.sleep(web.asked_wait_s(error) or wait_s)
    return ask()


def _status(error: BaseException) -> int:
    return getattr(getattr(error, "response", None), "status_code", 0)


@cache
def _bound() -> None:
    """Have the SDK's client give up in the end: for pages of a listing it waits for ever. And keep it quiet."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def within(request: Any) -> None:
        if not request.extensions.get("timeout", {}).get("read"):
            request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), PAGE_S)

    def made() -> Any:
        client = default_client_factory()
        client.event_hooks["request"].append(within)
        return client

    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    set_client_factory(made)
