"""Requests and answers: JSON in, JSON out, one sentence for what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from lora_trainer.config.schema import MAX_DOCUMENT_BYTES, require_known
from lora_trainer.core.errors import ConfigErrors, InputError, LoraTrainError, NotFound
from lora_trainer.core.plain_json import json_text, parse_json


async def read_json(request: Request) -> dict[str, Any]:
    """The request's JSON object; an empty body is an empty object.

    Raises:
        InputError: too large, not JSON, or not an object.
    """
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_DOCUMENT_BYTES:
            raise InputError("body: larger than 1 MB.", field="body")
    if not raw.strip():
        return {}
    try:
        value = parse_json(bytes(raw))
    except ValueError as error:
        raise InputError("body: not valid JSON ({error}).", field="body", error=error) from error
    if not isinstance(value, dict):
        raise InputError("body: expected a JSON object.", field="body")
    return value


class StrictJson(JSONResponse):
    """An answer that every program can read: ``null`` for NaN, whatever a damaged file holds."""

    def render(self, content: Any) -> bytes:
        """The answer's bytes."""
        return json_text(content, compact=True).encode()


class Route(APIRoute):
    """Answers our errors as JSON: 404 no such thing, 422 bad input, 500 the work failed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler with our errors caught."""
        original = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await original(request)
            except LoraTrainError as error:
                status = 404 if isinstance(error, NotFound) else 422 if isinstance(error, InputError) else 500
                return StrictJson(error_body(error), status_code=status)

        return handle


Document = Depends(read_json)


def fields_of(**properties: Any) -> dict[str, Any]:
    """The schema of a body that no document class reads; those have titles."""
    return {"type": "object", "properties": properties, "additionalProperties": False}


def require_nothing(schema: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """Whatever a program asks for is done or refused: a misspelt key would be neither."""

    def check(body: dict[str, Any] = Document) -> None:
        require_known(body, schema["properties"])

    return check


def flag_in(body: dict[str, Any], key: str, default: bool) -> bool:
    """A truth value of a request's body; raises :class:`InputError`."""
    value = body.get(key, default)
    if not isinstance(value, bool):
        raise InputError("{key}: expected true or false.", field=key, key=key)
    return value


def whole_in(body: dict[str, Any], key: str, default: int) -> int:
    """A whole number of a request's body; raises :class:`InputError`."""
    value = body.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError("{key}: expected a whole number.", field=key, key=key)
    return value


def error_body(error: LoraTrainError) -> dict[str, Any]:
    """An error in FastAPI's form, with the field's dotted path beside it."""
    errors: list[Any] = error.errors if isinstance(error, ConfigErrors) else [error]
    return {
        "detail": [
            {"loc": ["body", *filter(None, e.field.split("."))], "field": e.field, "msg": str(e), "type": "value_error"}
            for e in errors
        ]
    }
