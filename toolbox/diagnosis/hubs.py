"""Rules: what keeps a repository of Hugging Face or ModelScope from being fetched."""

from toolbox.diagnosis.causes import Cause
from toolbox.diagnosis.traces import Traces
from toolbox.i18n import _

GATED = (
    r"Cannot access gated repo|You are trying to access a gated repo|GatedRepoError|Access to model \S+ is restricted"
    r"|is restricted and you are not in the authorized list"
)
"""huggingface_hub (utils/_http.py, errors.py), transformers (utils/hub.py)."""
TOKEN = (
    r"Invalid user token|Invalid credentials in Authorization header|Authentication token does not exist"
    r"|Token does not exist, please login first|Make sure your token has the correct permissions"
    r"|LocalTokenNotFoundError|401 Client Error: Unauthorized"
)
"""huggingface_hub (utils/_http.py, errors.py), modelscope (hub/errors.py), modelscope_hub (compat/hub_api.py)."""
MISSING = (
    r"Repository Not Found for url|RepositoryNotFoundError|RevisionNotFoundError|Revision Not Found for url"
    r"|does not exist or is not accessible|request resource\(model or dataset\) does not exist"
    r"|is not a local folder and is not a valid model identifier"
)
"""huggingface_hub (utils/_http.py), modelscope (hub/errors.py), transformers (utils/hub.py)."""
NETWORK = (
    r"We couldn't connect to '|Temporary failure in name resolution|Name or service not known|Network is unreachable"
    r"|Max retries exceeded with url|NewConnectionError|ConnectTimeout|outgoing traffic has been disabled"
    r"|OfflineModeIsEnabled|Failed to establish a new connection|No address associated with hostname"
)
"""transformers (utils/hub.py), huggingface_hub (file_download.py, errors.py), urllib3, httpx, glibc (gai_strerror)."""


def gated(traces: Traces) -> Cause | None:
    evidence = traces.said(GATED)
    if not evidence:
        return None
    return Cause(
        kind="gated",
        message=_("The repository is gated: its owner wants its terms accepted, and an account that has done so."),
        evidence=evidence,
        remedy=_(
            "Accept the terms on its page, then set HF_TOKEN to a token of that account; or try ModelScope's copy."
        ),
        command=traces.command("download", _model(traces), "--source", "modelscope"),
    )


def token(traces: Traces) -> Cause | None:
    evidence = traces.said(TOKEN)
    if not evidence or traces.said(GATED):
        return None
    return Cause(
        kind="token",
        message=_("The hub wants to know who asks: the token is missing, wrong, or may not read this."),
        evidence=evidence,
        remedy=_("Set HF_TOKEN (Hugging Face) or MODELSCOPE_API_TOKEN (ModelScope) to a token that may, then again:"),
        command=traces.command("download", _model(traces)),
    )


def missing(traces: Traces) -> Cause | None:
    evidence = traces.said(MISSING)
    if not evidence or traces.said(GATED):
        return None
    return Cause(
        kind="repository",
        message=_("There is no such repository or revision on the hub, or it is private."),
        evidence=evidence,
        remedy=_("Check the spelling, OWNER/NAME with capitals as on its page; a private one needs a token."),
        command=traces.command("download", _model(traces)),
    )


def network(traces: Traces) -> Cause | None:
    evidence = traces.said(NETWORK)
    if not evidence or traces.said(f"{GATED}|{MISSING}|{TOKEN}"):
        return None
    return Cause(
        kind="network",
        message=_("A hub could not be reached."),
        evidence=evidence,
        remedy=_(
            "Check the network and its proxy (HTTPS_PROXY); jobs never fetch anything themselves, so download first, "
            "from the hub that you can reach."
        ),
        command=traces.command("download", _model(traces), "--source", "modelscope"),
    )


def _model(traces: Traces) -> str:
    return str(traces.facts.model.get("id") or "OWNER/NAME")
