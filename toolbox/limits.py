"""What clients may ask of a server before they are refused: bytes, seconds, requests at once (`serve --limit`)."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from toolbox.errors import InputError
from toolbox.i18n import _

Bytes = Annotated[int, Meta(ge=1 << 10, le=1 << 32)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
Count = Annotated[int, Meta(ge=1, le=1 << 16)]


class Limits(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    body_bytes: Bytes = 8 << 20
    """Of one request; pictures count too."""
    bodies_bytes: Bytes = 128 << 20
    """Of all requests that are being read: as many at once as fit are taken."""
    headers_s: Seconds = 20.0
    """From the first byte of a request, or the opening of a connection, to the end of its headers."""
    body_s: Seconds = 60.0
    write_s: Seconds = 60.0
    """A client that has read nothing for so long, while something waits for it, is let go."""
    linger_s: Seconds = 5.0
    """A body that nobody wants is taken for so long, so that its sender gets to read the answer."""
    answer_s: Seconds = 900.0
    """Without an end of the answer after this long, the engine is let go and the client told."""
    stuck_s: Seconds = 300.0
    """An engine that is streaming answers and has sent nothing for so long is restarted."""
    in_flight: Count = 64
    """Requests under way at once; the next one is answered 429."""
    connections: Count = 1024
    drain_s: Seconds = 10.0
    """When stopping: what is under way may still take this long."""


def parse(words: Sequence[str]) -> Limits:
    """`NAME=VALUE …` as limits. Raises InputError naming what there is, or what the value may be."""
    given = {name.strip(): value.strip() for name, _equals, value in (word.partition("=") for word in words)}
    known = Limits.__struct_fields__
    for name in given:
        if name not in known:
            raise InputError(
                _("There is no limit {name!r}.").format(name=name), _("Limits: {names}.").format(names=", ".join(known))
            )
    try:
        return msgspec.convert(given, Limits, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(
            _("--limit is not understood: {reason}.").format(reason=error), _("As in: --limit answer_s=300")
        ) from error
