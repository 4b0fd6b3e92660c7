"""`ApiError`: an error with an HTTP status, and the JSON of errors in the shapes of OpenAI and Anthropic."""

from __future__ import annotations

import json
import re
from collections.abc import Container
from typing import Any

from puna.errors import (
    ArgumentError,
    ChatTemplateError,
    ClosedError,
    MissingExtraError,
    RequestError,
    TokenIdError,
)

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    413: "invalid_request_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error",
}  # fmt: skip
"""OpenAI's type of an error by status; all other errors are invalid requests."""

_ANTHROPIC_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    413: "request_too_large", 429: "rate_limit_error", 500: "api_error", 503: "overloaded_error",
}  # fmt: skip

_ANTHROPIC_CODES = frozenset({"thread_unsupported_request"})
"""Codes that Anthropic's SDK reads. After an error with this code, its tool runner sends all messages again."""


CLIENT_ERRORS = (RequestError, ChatTemplateError, TokenIdError, ArgumentError, MissingExtraError)
"""Errors that a request can cause. Messages of other errors may contain paths of the server, and are not sent."""


_PATH = re.compile(r"(\w*)(?:\[\d+\]|\.\w+)*")
"""The path of a field, such as messages[0].content, and its first name."""


class ApiError(Exception):
    """An error that is sent to the client.

    Args:
        status: the HTTP status.
        message: what was wrong, the value, the limit and the remedy.
        type: OpenAI's type of the error; None derives it from the status.
        param: the field of the request.
        code: OpenAI's code of the error.
        retry_after: seconds after which the client may try again.
        allow: the methods that are allowed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        allow: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type or _TYPES.get(status, "invalid_request_error")
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.allow = allow

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        headers = {"Allow": ", ".join(self.allow)} if self.allow else {}
        return headers if self.retry_after is None else {**headers, "Retry-After": str(max(1, round(self.retry_after)))}

    def openai(self) -> dict[str, Any]:
        """Returns the JSON of the error in OpenAI's shape."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def anthropic(self, request_id: str | None) -> dict[str, Any]:
        """Returns the JSON of the error in Anthropic's shape."""
        kind = _ANTHROPIC_TYPES.get(self.status, "invalid_request_error")
        details = {"details": {"error_code": self.code}} if self.code in _ANTHROPIC_CODES else {}
        return {
            "type": "error",
            "error": {"type": kind, "message": self.message, **details},
            "request_id": request_id,
        }


def unsupported(param: str, message: str) -> ApiError:
    """Returns the error for a field, or a value, that this server does not support."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


def api_error(error: BaseException, request_id: str | None = None, fields: Container[str] = ()) -> ApiError:
    """Returns the error to send for any exception. The text of an unexpected exception is not sent.

    Args:
        request_id: identifies the request in the log.
        fields: names of fields; if an error message begins with one of them, the error names this field.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, CLIENT_ERRORS):
        path = _PATH.match(str(error))
        param = path[0] if path is not None and path[1] in fields else None
        return ApiError(400, str(error), param=param, code="invalid_value")
    if isinstance(error, ClosedError):
        return ApiError(503, "the server stopped before the answer was complete; send the request again", retry_after=1)
    suffix = "" if request_id is None else f" (request {request_id})"
    return ApiError(500, f"the server failed; its log has the cause{suffix}", code="internal_error")


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


_ESCAPING_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def to_json(document: Any) -> bytes:
    """Returns JSON as compact UTF-8."""
    try:
        return _ENCODER.encode(document).encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which the arguments of a call may have as an escape
        return _ESCAPING_ENCODER.encode(document).encode()
