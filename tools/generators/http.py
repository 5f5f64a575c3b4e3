"""The HTTP reference from the declarations of the resources: openapi.json and the table of routes."""

from __future__ import annotations

from llama_orch import __version__
from llama_orch.api.openapi import COMMON, document, operations, to_json
from llama_orch.core.field_comments import field_comments

_HEAD = """\
<!-- Generated from the resources in api/ by `make generate`; edit those. -->

# HTTP API

The whole of it, with all bodies, stands in [openapi.json](openapi.json), which the server also answers at
`GET /openapi.json`. Errors are listed in [errors.md](errors.md), the frames of streams in [streams.md](streams.md).

Every answer carries `X-Correlation-Id` and `x-request-id`: the request's own, or ones that were made. Requests whose `Host` or
`Origin` is not one of the server's own are answered 403. Without keys the server listens on loopback addresses only and takes
any bearer; from the first key on every route but `/health` asks for one, as `Authorization: Bearer` or `x-api-key`, with one of
the scopes that its entry in openapi.json names under `x-scopes` ([keys](../how-to/keys.md)). Beside the errors below every route
may answer {common}.

"""


def outputs() -> dict[str, bytes]:
    """Both files as bytes, under their paths."""
    return {
        "docs/reference/openapi.json": to_json(document(__version__)),
        "docs/reference/http.md": _page().encode(),
    }


def _page() -> str:
    found = operations()
    common = ", ".join(f"`{error.code}`" for error in COMMON)
    parts = [_HEAD.format(common=common), "| route | purpose |\n|---|---|\n"]
    for kind, method, op in found:
        parts.append(f"| `{method.upper()} {kind.path}` | {op.summary} |\n")
    for kind, method, op in found:
        parts.append(f"\n## {method.upper()} {kind.path}\n\n{op.description}\n")
        rows = [(f"`{name}`", "path", "") for name in op.path]
        if op.query is not None:
            comments = field_comments(op.query)
            for name, spelled in _query_names(op.query):
                rows.append((f"`{spelled}`", "query", comments.get(name, "")))
        rows += [(f"`{name}`", "header", meaning) for name, meaning in op.request_headers.items()]
        if rows:
            parts.append("\n| parameter | in | meaning |\n|---|---|---|\n")
            for name, place, meaning in rows:
                parts.append(f"| {name} | {place} | {_cell(meaning)} |\n")
        body = f"`{op.body.__name__}`" if op.body is not None else ""
        if body:
            parts.append(f"\nBody: {body}.\n")
        answer = f"{op.status}, `{op.media_type}`" if op.status != 204 else "204"
        parts.append(f"\nAnswer: {answer}.")
        if op.answer_headers:
            parts.append(" Headers: " + " ".join(f"`{n}`: {m}" for n, m in op.answer_headers.items()))
        if op.errors:
            parts.append(" Errors: " + ", ".join(f"`{code}`" for code in sorted({e.code for e in op.errors})) + ".")
        parts.append("\n")
    return "".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _query_names(kind: type) -> list[tuple[str, str]]:
    import msgspec

    return [(f.name, f.encode_name) for f in msgspec.structs.fields(kind)]
