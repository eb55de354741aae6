"""ModelScope, through its own SDK: `modelscope_hub`, the part of `modelscope` that speaks to the hub without torch."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from toolbox.config import Home
from toolbox.errors import InputError, NotFoundError
from toolbox.hub.sources import CONNECTIONS, Entry, Listing, Repo, unreachable
from toolbox.hub.store import KINDS
from toolbox.i18n import _

DOMESTIC = ("modelscope.cn", ".modelscope.cn", ".aliyuncs.com")
"""The hub and the storage it redirects to: reached directly, also where a proxy is set for the world outside."""
SDK_DEFAULTS = {
    "MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT": str(7 * 24 * 3600),
    "MODELSCOPE_DOWNLOAD_TIMEOUT": "30",
    "MODELSCOPE_DOWNLOAD_FILE_LOCK": "false",
    "MODELSCOPE_API_MAX_RETRIES": "2",
    "MODELSCOPE_REPO_TREE_PAGE_MAX_ATTEMPTS": "2",
    "TQDM_DISABLE": "1",
}
"""Read by the SDK when it is imported: an hour a file is too little for 100 GB, and the lock and the bar are ours."""


class ModelScope:
    """A Source."""

    name = "modelscope"
    title = "ModelScope"

    def __init__(self, endpoint: str, environ: Mapping[str, str], home: Home) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._home = home
        self._token = environ.get("MODELSCOPE_API_TOKEN", "")

    def listing(self, repo: Repo) -> Listing:
        api = self._api
        from modelscope_hub import errors

        revision = repo.revision or "master"
        try:
            found = api.list_repo_files(repo.id, repo.kind, revision=revision)
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
            raise InputError(
                _("ModelScope does not let us read {id}.").format(id=repo.id),
                _("Set MODELSCOPE_API_TOKEN to a token of an account that may."),
            ) from error
        except (errors.HubError, OSError, ValueError) as error:
            raise unreachable(self, error) from error
        entries = [Entry(file.path, file.size, (file.sha256 or "").lower()) for file in found if file.type != "tree"]
        return Listing(self.name, self.endpoint, revision, entries)

    def get(self, repo: Repo, entries: Sequence[Entry], folder: Path, progress: Callable[[int], None]) -> None:
        api = self._api
        from modelscope_hub import errors

        try:
            api.download_repo(
                repo.id,
                repo.kind,
                revision=repo.revision,
                local_dir=folder,
                cache_dir=folder,
                max_workers=CONNECTIONS,
                file_list=[{"Path": entry.path, "Size": entry.size} for entry in entries],
                progress_callbacks=[_callback(progress)],
            )
        except errors.FileDownloadError as error:
            failed = list(error.failed_files.values())
            raise next((e for e in failed if isinstance(e, OSError) and e.errno), None) or unreachable(
                self, failed[0] if failed else error
            ) from error
        except errors.HubError as error:
            raise unreachable(self, error) from error

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


def _callback(progress: Callable[[int], None]) -> type:
    """The SDK makes one of these for each file."""
    from modelscope_hub import ProgressCallback

    class Callback(ProgressCallback):
        def update(self, size: int) -> None:
            progress(size)

    return Callback
