"""ModelScope, or a mirror: its SDK (`modelscope_hub`, what `modelscope` has without torch) lists; `web` brings."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from toolbox.config import Home
from toolbox.errors import HubError, InputError, NotFoundError
from toolbox.hub import web
from toolbox.hub.sources import ODD, STALL_S, Entry, Listing, Read, Repo, address, entries, no_listing, unreachable
from toolbox.hub.store import KINDS
from toolbox.i18n import _

DOMESTIC = ("modelscope.cn", ".modelscope.cn", ".aliyuncs.com")
"""The hub and the storage it redirects to: reached directly, also where a proxy is set for the world outside."""
SDK_DEFAULTS = {
    "MODELSCOPE_API_MAX_RETRIES": "2",
    "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2",
}
"""Read by the SDK when it is imported: another hub is asked before it has tried five times."""


class ModelScope:
    """A Source."""

    title = "ModelScope"

    def __init__(
        self, endpoint: str, environ: Mapping[str, str], home: Home, stall_s: float = STALL_S, name: str = "modelscope"
    ) -> None:
        self.name = name
        self.endpoint = address(endpoint)
        self._stall_s = stall_s
        self._home = home
        self._token = environ.get("MODELSCOPE_API_TOKEN", "")

    def listing(self, repo: Repo) -> Listing:
        api = self._api
        from modelscope_hub import errors

        revision = repo.revision or "master"
        try:
            said = [
                {
                    "path": file.path,
                    "size": file.size,
                    "sha256": (file.sha256 or "").lower(),
                    "version": str(file.last_modified or ""),
                }
                for file in api.list_repo_files(repo.id, repo.kind, revision=revision)
                if file.type != "tree"
            ]
            found = Listing(self.name, self.endpoint, revision, entries(said))
        except errors.NotExistError as error:
            raise NotFoundError(
                _("ModelScope has no {kind} {id} at revision {revision}.").format(
                    kind=_(KINDS[repo.kind]), id=repo.id, revision=revision
                ),
                _("Check the spelling on {endpoint}, --type, or try --source huggingface.").format(
                    endpoint=self.endpoint
                ),
            ) from error
        except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
            raise self._denied(repo) from error
        except (errors.HubError, OSError) as error:
            odd = isinstance(error, ValueError)  # requests' error for what is no JSON is an OSError too
            raise unreachable(self, no_listing() if odd else error) from error
        except ODD as error:
            raise unreachable(self, no_listing()) from error
        if getattr(api.legacy._read_state, "listing_incomplete", False):
            raise HubError(
                _("ModelScope does not list all files of {id}: a folder has too many.").format(id=repo.id),
                _("Take it from another hub: --source huggingface"),
            )
        return found

    def reading(self, repo: Repo) -> AbstractContextManager[Read]:
        api = self._api
        # What the SDK itself sends: within Alibaba Cloud a header that leads to the storage of the same region.
        headers = api.downloader._build_download_headers()
        secrets = {"Authorization": f"Bearer {self._token}", "Cookie": f"m_session_id={self._token}"}

        def place(entry: Entry) -> str:
            return str(api.legacy.get_download_url(repo.id, repo.kind, entry.path, repo.revision))

        shown = secrets if self._token else {}
        return web.reading(headers, shown, place, self._denied(repo), direct=True, stall_s=self._stall_s)

    def _denied(self, repo: Repo) -> InputError:
        return InputError(
            _("ModelScope does not let us read {id}.").format(id=repo.id),
            _("Set MODELSCOPE_API_TOKEN to a token of an account that may."),
        )

    @cached_property
    def _api(self) -> Any:
        """The SDK's client; the SDK reads its defaults when it is imported, so ask for this first."""
        for name, value in SDK_DEFAULTS.items():
            os.environ.setdefault(name, value)
        _reach_directly([urlsplit(self.endpoint).hostname or "", *DOMESTIC])
        from modelscope_hub import HubApi, HubConfig

        logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)
        # With a token given, the SDK does not unpickle the cookies of `modelscope login`.
        config = HubConfig(endpoint=self.endpoint, token=self._token, config_dir=self._home.path / ".modelscope")
        return HubApi(config)


def _reach_directly(hosts: Sequence[str]) -> None:
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    listed = [host for host in named.split(",") if host]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*listed, *filter(None, hosts)]))
