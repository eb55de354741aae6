"""Pictures in a request: as data of a known kind and size, for engines that see; an address is fetched by nobody.

An engine that follows `image_url` does so from inside the network: loopback, a cloud's metadata, files. Redirects and
names that resolve otherwise the second time pass every check of an address, so there is none to pass.
"""

import base64
import binascii
import io
import re
import struct
from typing import Any

from toolbox.serving.refused import Refused

PICTURE_BYTES = 8 << 20
PIXELS = 32 << 20
"""A few bytes can unfold into as many pixels as their header says."""
DATA = re.compile(r"data:image/(png|jpeg|gif|webp);base64,", re.ASCII)
MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "jpeg": b"\xff\xd8\xff", "gif": b"GIF8", "webp": b"RIFF"}


def check(part: Any, pictures: bool) -> None:
    """Raise Refused for a part of a message that is neither text nor, where the engine sees `pictures`, one as data."""
    if part.type == "text":
        part.image_url = None
        return
    if part.type != "image_url" or not pictures:
        reads = "text and pictures" if pictures else "text"
        raise _refused(f"This server reads {reads} only; content of type {part.type[:40]!r} is refused.")
    kind = DATA.match(part.image_url.url) if part.image_url else None
    if not kind:
        raise _refused(
            "A picture has to come as data:image/png;base64,… (or jpeg, gif, webp): nothing is fetched here."
        )
    encoded = part.image_url.url[kind.end() :]
    if len(encoded) > PICTURE_BYTES * 4 // 3 + 4:
        raise _refused(f"A picture is larger than {PICTURE_BYTES} bytes.")
    try:
        data = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise _refused("A picture's base64 is broken.") from error
    width, height = _size(data, kind[1])
    if width * height > PIXELS:
        raise _refused(f"A picture has {width} x {height} pixels; more than {PIXELS} are refused.")


def _size(data: bytes, kind: str) -> tuple[int, int]:
    """Width and height, from the header alone. Raises Refused where it is not the `kind` of picture it claims to be."""
    from PIL import Image

    if not data.startswith(MAGIC[kind]):
        raise _refused(f"A picture is said to be {kind}, and its first bytes say otherwise.")
    try:
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as picture:
            return picture.size
    except (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError) as error:
        raise _refused(f"A picture can't be read as {kind}.") from error


def _refused(message: str) -> Refused:
    return Refused(400, message, "media_not_supported", "messages")
