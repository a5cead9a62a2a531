"""Errors as OpenAI's servers answer them: JSON with message, type, param and code."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from dss_jax.core.errors import UsageError
from dss_jax.serve.batching import NotServing, QueueFull

TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "service_unavailable_error"}
"""Status -> `type` of the error; others are requests that are wrong, or our own failures."""


class ApiError(UsageError):
    """A request cannot be answered.

    Args:
      message: what is wrong, what is allowed, the fix.
      param: the field of the request.
      code: for programs.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status, self.param, self.code, self.headers = status, param, code, headers or {}

    def response(self) -> JSONResponse:
        """As it is sent."""
        kind = "server_error" if self.http_status >= 500 else "invalid_request_error"
        error = {
            "message": _sendable(str(self)),
            "type": TYPES.get(self.http_status, kind),
            "param": self.param and _sendable(self.param),
            "code": self.code,
        }
        return JSONResponse({"error": error}, self.http_status, self.headers)


def _sendable(text: str) -> str:
    """Without lone surrogates, which UTF-8 has not."""
    return text.encode(errors="replace").decode()


def of_validation(errors: list[dict[str, Any]], wanted: dict[str, str]) -> ApiError:
    """What is wrong with a body, from pydantic's list of errors.

    Args:
      wanted: field -> what it must be, for those of several types, where pydantic has an error a
        type.
    """
    # One of our own says more than that a text is no list.
    first = next((error for error in errors if error["type"] == "value_error"), errors[0])
    place = [str(part) for part in first["loc"][1:]]  # Without "body".
    param = place[0] if place else ""
    if first["type"] == "json_invalid":
        said = first.get("ctx", {}).get("error", "")
        return ApiError(f"the body is no JSON: {said}", code="invalid_json")
    if not place:
        return ApiError("the body must be a JSON object", code="invalid_json")
    if first["type"] == "missing":
        return ApiError(f"{param} is missing", param=param, code="missing")
    if first["type"] == "extra_forbidden":
        known = f"known are {', '.join(wanted)}"
        return ApiError(f"unknown field {param!r}: {known}", param=param, code="unknown_field")
    text = f"{param} must be {wanted.get(param)}"
    if first["type"] == "value_error" or not wanted.get(param):
        text = f"{param}: {first['msg']}"
    return ApiError(text, param=param, code="invalid_value")


def add_handlers(app: FastAPI, wanted: dict[str, dict[str, str]]) -> None:
    """Every error of the app becomes such an answer. `wanted`: path -> see `of_validation`."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return _as_api_error(request, error, wanted).response()

    ours = (ApiError, UsageError, QueueFull, NotServing)
    for kind in (*ours, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def _as_api_error(
    request: Request, error: Exception, wanted: dict[str, dict[str, str]]
) -> ApiError:
    path, headers = request.url.path, dict(getattr(error, "headers", None) or {})
    match error:
        case ApiError():
            return error
        case UsageError():
            return ApiError(str(error), code="invalid_value")
        case QueueFull():
            headers = {"Retry-After": str(error.retry_after)}
            return ApiError(str(error), status=429, code="queue_full", headers=headers)
        case NotServing():
            headers = {"Retry-After": "1"}
            return ApiError(str(error), status=503, code="stopping", headers=headers)
        case RequestValidationError():
            return of_validation([*error.errors()], wanted.get(path, {}))
        case HTTPException(status_code=404 | 405 as status):
            text = f"there is no {request.method} {path[:200]}: /docs has what there is"
            if path == "/v1/chat/completions":
                text = (
                    "a student has no chat form: ask /v1/completions (openai: client.completions; "
                    "dss extract: --form completion; lm_eval: --model local-completions)"
                )
            return ApiError(text, status=status, code="not_found", headers=headers)
        case HTTPException():
            return ApiError(str(error.detail), status=error.status_code, headers=headers)
    return ApiError("the student has failed; the server's log says why", status=500)
