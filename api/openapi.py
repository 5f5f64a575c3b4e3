"""OpenAPI 3.1 from the declarations of the resources (API-1)."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import orjson

from ..core.errors import (
    BadTokenError,
    ForbiddenError,
    InternalError,
    InvalidParamsError,
    MissingTokenError,
    OrchError,
    PayloadTooLargeError,
)
from ..core.field_comments import field_comments
from .discovery import resource_types
from .operations import JSON, Operation, Resource
from .streaming import EVENT_STREAM

#: what every route may answer
COMMON: tuple[type[OrchError], ...] = (
    InvalidParamsError,
    MissingTokenError,
    BadTokenError,
    ForbiddenError,
    InternalError,
)

_ERROR = {
    "type": "object",
    "description": "An error: a stable code, and what to do next.",
    "required": ["code", "message", "retriable", "remedy"],
    "properties": {
        "code": {"type": "string", "description": "Stable; see the reference of errors."},
        "message": {"type": "string"},
        "retriable": {"type": "boolean", "description": "Whether the same request may succeed later."},
        "remedy": {"type": "string", "description": "What to do next."},
        "field": {"type": "string", "description": "The field at fault."},
        "got": {"description": "What was found there."},
        "expected": {"type": "string", "description": "What is taken there."},
        "engine": {"type": "string"},
        "pool_id": {"type": "string"},
        "policy_label": {"type": "string", "description": "Of a full queue: reject or drop-lru."},
        "retry_after_ms": {"type": "integer"},
        "correlation_id": {"type": "string"},
    },
}
_OPENAI_ERROR = {
    "type": "object",
    "description": "An error in the shape that OpenAI's clients expect.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
                "retriable": {"type": "boolean"},
                "remedy": {"type": "string"},
            },
        }
    },
}
_ANTHROPIC_ERROR = {
    "type": "object",
    "description": "An error in the shape that Anthropic's clients expect.",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message", "code", "retriable", "remedy"],
            "properties": {
                "type": {"type": "string"},
                "message": {"type": "string"},
                "code": {"type": "string"},
                "retriable": {"type": "boolean"},
                "remedy": {"type": "string"},
            },
        },
        "request_id": {"type": "string"},
    },
}
_ERROR_OF_SHAPE = {"native": "Error", "openai": "OpenAIError", "anthropic": "AnthropicError"}
_RETRY_HEADERS = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}},
    "X-Backoff-Ms": {"description": "The same in milliseconds.", "schema": {"type": "integer"}},
}
_CORRELATION = {
    "X-Correlation-Id": {"description": "The request's, or one that was made.", "schema": {"type": "string"}}
}


def operations() -> list[tuple[type[Resource], str, Operation]]:
    """Every operation with its resource and HTTP method, by path."""
    return [(kind, method, op) for kind in resource_types() for method, op in sorted(kind.operations.items())]


def document(version: str) -> dict[str, Any]:
    """The OpenAPI document.

    :param version: of the API, which is the program's.
    """
    found = operations()
    types = list(dict.fromkeys(t for _, _, op in found for t in (op.body, op.answer) if _is_struct(t)))
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    by_type = dict(zip(types, schemas, strict=True))
    structs = _structs(types)
    components = {name: _described(_clean(schema), structs.get(name)) for name, schema in components.items()}
    components |= {"Error": _ERROR, "OpenAIError": _OPENAI_ERROR, "AnthropicError": _ANTHROPIC_ERROR}
    paths: dict[str, Any] = {}
    for kind, method, op in found:
        paths.setdefault(kind.path, {})[method] = _operation(kind, method, op, by_type)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "llama-orch",
            "version": version,
            "summary": "One queue, one journal and explainable placement for local LLM engines",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:8080"}],
        "security": [{}, {"bearer": []}, {"header": []}],
        "tags": [{"name": tag} for tag in sorted({kind.tag for kind, _, _ in found})],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A key; any, while there are none."},
                "header": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same."},
            },
        },
    }


def to_json(described: dict[str, Any]) -> bytes:
    """The document as it is served and committed."""
    return orjson.dumps(described, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _structs(types: list[type[msgspec.Struct]]) -> dict[str, type[msgspec.Struct]]:
    """These structs and all that they hold, by name."""
    found: dict[str, type[msgspec.Struct]] = {}
    pending: list[Any] = [msgspec.inspect.type_info(kind) for kind in types]
    while pending:
        info = pending.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls.__name__ in found:
                continue
            found[info.cls.__name__] = info.cls
            pending += [f.type for f in info.fields]
        elif isinstance(info, msgspec.inspect.UnionType):
            pending += info.types
        elif isinstance(info, msgspec.inspect.Metadata):
            pending.append(info.type)
        elif isinstance(info, msgspec.inspect.ListType):
            pending.append(info.item_type)
        elif isinstance(info, msgspec.inspect.DictType):
            pending.append(info.value_type)
    return found


def _described(schema: dict[str, Any], kind: type[msgspec.Struct] | None) -> dict[str, Any]:
    """A struct's schema with the comments of its fields."""
    comments = field_comments(kind) if kind is not None else {}
    spelled: dict[str, str] = {f.encode_name: f.name for f in msgspec.structs.fields(kind)} if kind is not None else {}
    for name, below in schema.get("properties", {}).items():
        comment = comments.get(spelled.get(name) or name)
        if comment is not None:
            below["description"] = comment
    return schema


def _clean(value: Any) -> Any:
    """Msgspec's schema without what is no JSON schema of 2020-12 or says nothing."""
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items() if not (k == "title" and isinstance(v, str))}
    if isinstance(value, list):
        return [_clean(v) for v in value]
    return value


def operation_id(kind: type[Resource], method: str) -> str:
    """A name for an operation, from its method and path."""
    words = re.sub(r"[^a-z0-9]+", "_", kind.path.lower().replace("{", "by_").replace("}", "")).strip("_")
    return f"{method}_{words}"


def _operation(kind: type[Resource], method: str, op: Operation, by_type: dict[Any, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {
        "operationId": operation_id(kind, method),
        "tags": [kind.tag],
        "summary": op.summary,
        "description": op.description,
        "x-scopes": list(op.scopes),
        "parameters": _parameters(op),
        "responses": {str(op.status): _answer(op, by_type), **_errors(kind, op)},
    }
    if op.body is not None:
        out["requestBody"] = {"required": True, "content": {JSON: {"schema": by_type[op.body]}}}
    return out


def _parameters(op: Operation) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1, "maxLength": 128}}
        for name in op.path
    ]
    if op.query is not None:
        _, components = msgspec.json.schema_components([op.query])
        described = _described(_clean(components[op.query.__name__]), op.query)
        for name, schema in described["properties"].items():
            out.append({"name": name, "in": "query", "required": False, "schema": _query_schema(schema)})
    for name, meaning in op.request_headers.items():
        out.append(
            {"name": name, "in": "header", "required": False, "description": meaning, "schema": {"type": "string"}}
        )
    return out


def _query_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A query parameter is text or absent, never null."""
    options = schema.get("anyOf")
    if options is None:
        if isinstance(schema.get("enum"), list):
            return {
                **{k: v for k, v in schema.items() if k != "default"},
                "enum": [v for v in schema["enum"] if v is not None],
            }
        return schema
    kept = [o for o in options if o.get("type") != "null"]
    told = {"description": schema["description"]} if "description" in schema else {}
    return {**told, **(kept[0] if len(kept) == 1 else {"anyOf": kept})}


def _answer(op: Operation, by_type: dict[Any, Any]) -> dict[str, Any]:
    headers = {**_CORRELATION}
    for name, meaning in op.answer_headers.items():
        headers[name] = {"description": meaning, "schema": {"type": "string"}}
    if op.status == 204:
        return {"description": "Done.", "headers": headers}
    content: dict[str, Any] = {}
    if op.media_type == JSON:
        content[JSON] = {"schema": by_type.get(op.answer, {"type": "object"})}
        if "stream" in (f.name for f in (msgspec.structs.fields(op.body) if _is_struct(op.body) else ())):
            content[EVENT_STREAM] = {"schema": {"type": "string"}}
    else:
        content[op.media_type] = {"schema": {"type": "string"}}
    return {"description": "As asked for.", "headers": headers, "content": content}


def _errors(kind: type[Resource], op: Operation) -> dict[str, Any]:
    wanted = [*COMMON, *op.errors] + ([PayloadTooLargeError] if op.body is not None else [])
    by_status: dict[int, list[type[OrchError]]] = {}
    for error in wanted:
        by_status.setdefault(error.status, []).append(error)
    name = _ERROR_OF_SHAPE[kind.shape]
    out: dict[str, Any] = {}
    for status, errors in sorted(by_status.items()):
        codes = ", ".join(sorted({e.code for e in errors}))
        schema: dict[str, Any] = {"$ref": f"#/components/schemas/{name}"}
        if kind.path == "/readyz" and status == 503:
            schema = {"$ref": "#/components/schemas/ReadyBody"}
        headers = {**_CORRELATION, **(_RETRY_HEADERS if status in (429, 503) else {})}
        out[str(status)] = {"description": codes, "headers": headers, "content": {JSON: {"schema": schema}}}
    return out
