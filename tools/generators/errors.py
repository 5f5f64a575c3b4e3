"""docs/reference/errors.md from core/errors.py."""

from __future__ import annotations

from llama_orch.api.problems import error_types
from llama_orch.core.errors import JournalError, OrchError

_HEAD = """\
<!-- Generated from core/errors.py by `make generate`; edit that file. -->

# Errors

Every error has a stable code, a sentence, whether it is retriable, and what to do next; where they apply also `field`,
`got`, `expected`, `engine`, `pool_id` and `retry_after_ms`:

```json
{"code": "INVALID_PARAMS", "message": "priority: got 'interactiv', expected one of batch, interactive; …",
 "retriable": false, "remedy": "Correct the named field and send the request again.", "field": "priority",
 "got": "interactiv", "correlation_id": "9d1cc97ebcb22609"}
```

Full queues answer 429 with `Retry-After`, `X-Backoff-Ms` and `policy_label`. The OpenAI-compatible routes say the same in
OpenAI's shape, `{"error": {"message", "type", "param", "code", …}}`. Codes without a status come in streams and as the
error of a failed task.

| code | status | retriable | meaning | what to do |
|---|---:|---|---|---|
"""


def outputs() -> dict[str, bytes]:
    """The page as bytes, under its path."""
    rows: dict[str, str] = {}
    for kind in error_types():
        if "code" not in vars(kind) or kind is OrchError or issubclass(kind, JournalError):
            continue
        in_streams = kind.status == 500 and kind.code != "INTERNAL"
        status = "" if in_streams else str(kind.status)
        meaning = (kind.__doc__ or "").split("\n")[0]
        retriable = "yes" if kind.retriable else "no"
        rows[kind.code] = f"| `{kind.code}` | {status} | {retriable} | {meaning} | {kind.remedy} |\n"
    ordered = sorted(rows.items(), key=lambda row: (row[1].split("|")[2].strip() or "999", row[0]))
    return {"docs/reference/errors.md": (_HEAD + "".join(line for _, line in ordered)).encode()}
