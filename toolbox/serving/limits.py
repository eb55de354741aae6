"""What one client may ask of the gateway before it is refused: bytes, seconds, requests at once."""

import msgspec


class Limits(msgspec.Struct, kw_only=True, frozen=True):
    body_bytes: int = 8 << 20
    headers_s: float = 20.0
    """From the connection's opening to the end of the first request's headers."""
    body_s: float = 60.0
    answer_s: float = 900.0
    """Without an end of the answer after this long, the engine is let go and the client told."""
    in_flight: int = 64
    """Requests under way at once; the next one is answered 429."""
    connections: int = 1024
    drain_s: float = 10.0
    """When stopping: what is under way may still take this long."""
