"""Hugging Face, or a mirror of it: its SDK lists; `web` brings, since the SDK begins anew after `kill -9`."""

from contextlib import AbstractContextManager

from toolbox.errors import InputError, NotFoundError
from toolbox.hub import web
from toolbox.hub.sources import STALL_S, Entry, Listing, Read, Repo, unreachable
from toolbox.hub.store import KINDS
from toolbox.i18n import _


class HuggingFace:
    """A Source."""

    title = "Hugging Face"

    def __init__(self, endpoint: str, stall_s: float = STALL_S, name: str = "huggingface", token: bool = True) -> None:
        """`token`: whether HF_TOKEN may be shown to it."""
        self.name = name
        self.endpoint = endpoint.rstrip("/")
        self._stall_s = stall_s
        self._token = None if token else False

    def listing(self, repo: Repo) -> Listing:
        from huggingface_hub import HfApi, errors
        from huggingface_hub.hf_api import RepoFile

        api = HfApi(endpoint=self.endpoint, token=self._token)
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
            Entry(file.path, file.size, file.lfs.sha256, version=commit or "")
            if file.lfs
            else Entry(file.path, file.size, git_sha1=file.blob_id, version=commit or "")
            for file in tree
            if isinstance(file, RepoFile)
        ]
        return Listing(self.name, self.endpoint, commit or repo.revision, entries)

    def reading(self, repo: Repo) -> AbstractContextManager[Read]:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        def address(entry: Entry) -> str:
            return hf_hub_url(repo.id, entry.path, repo_type=repo.kind, revision=repo.revision, endpoint=self.endpoint)

        headers = build_hf_headers(token=self._token)
        secrets = {name: headers.pop(name) for name in list(headers) if name.lower() == "authorization"}
        return web.reading(headers, secrets, address, direct=False, stall_s=self._stall_s)
