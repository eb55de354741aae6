"""What a request is answered with that is not done: an error in OpenAI's shape."""

from typing import Any

RETRY_AFTER_S = {429: 1, 503: 2}


class Refused(Exception):
    """Told to programs, so not translated."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, *, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self._retry_after_s = retry_after_s or RETRY_AFTER_S.get(status)

    def body(self) -> dict[str, Any]:
        kind = "rate_limit_error" if self.status == 429 else "invalid_request_error"
        kind = "server_error" if self.status >= 500 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """When to try again, and how to show who one is."""
        told = {"Retry-After": str(self._retry_after_s)} if self._retry_after_s else {}
        return told | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
