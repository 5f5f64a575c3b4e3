"""Every error that a route may answer, as Anthropic's clients know it (ADM-8, API-2)."""

from __future__ import annotations

from typing import get_args

import anthropic
import httpx2
import pytest
from anthropic.types.shared.error_type import ErrorType

from llama_orch.api.problems import STATUS_OF_CODE, anthropic_body, body_of, error_types, headers_of
from llama_orch.core.errors import BackpressureError, ConflictError, ModelNotFoundError, OrchError, PayloadTooLargeError

#: in their documentation, and not in their client's list
DOCUMENTED = {"request_too_large"}
KINDS = sorted({kind for kind in error_types() if kind.code in STATUS_OF_CODE}, key=lambda kind: kind.__name__)
EXPECTED = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_has_a_type_that_anthropics_client_knows_beside_our_code(kind: type[OrchError]) -> None:
    error = OrchError.__new__(kind)
    OrchError.__init__(error, "it went wrong", field="model_ref", got="x")
    body = anthropic_body(error, "c1")
    told = body["error"]
    assert (body["type"], body["request_id"]) == ("error", "c1")
    assert told["type"] in {*get_args(ErrorType), *DOCUMENTED}
    assert told["type"] == EXPECTED.get(kind.status, told["type"])
    assert (told["code"], told["field"], told["message"]) == (kind.code, "model", "it went wrong")
    assert told["remedy"]


@pytest.mark.parametrize(
    "error, raised",
    [
        (ModelNotFoundError("no such"), anthropic.NotFoundError),
        (ConflictError("another body"), anthropic.ConflictError),
        (PayloadTooLargeError("too large"), anthropic.RequestTooLargeError),
        (BackpressureError("full", retry_after_ms=10), anthropic.RateLimitError),
    ],
)
def test_the_client_raises_what_the_status_means(error: OrchError, raised: type[anthropic.APIStatusError]) -> None:
    asked = 0

    def answer(request: httpx2.Request) -> httpx2.Response:
        nonlocal asked
        asked += 1
        return httpx2.Response(error.status, content=body_of(error, "anthropic", "c1"), headers=headers_of(error))

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    retries = 0 if error.retriable else 3
    with anthropic.Anthropic(
        base_url="http://127.0.0.1:1", api_key="x", max_retries=retries, http_client=http
    ) as client:
        with pytest.raises(raised) as caught:
            client.messages.create(model="m", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    assert asked == 1, "what no retry can mend was sent again"
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"]["code"] == error.code


def test_who_may_come_again_is_told_when_and_nobody_else_is_told_to_stay_away_for_nothing() -> None:
    assert headers_of(BackpressureError("full", retry_after_ms=1500)) == {"Retry-After": "2", "X-Backoff-Ms": "1500"}
    assert headers_of(ConflictError("another body")) == {"x-should-retry": "false"}
    assert headers_of(ModelNotFoundError("no such")) == {}
