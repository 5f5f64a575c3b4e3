"""``/v1/rerank``, ``/rerank`` and ``/v2/rerank``: how well documents fit a query, as Jina's and Cohere's clients ask (API-2)."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from ...core.errors import BudgetExhaustedError, InvalidParamsError
from ...core.types import Name, PlacementRequest, TaskRequest, Text, Uuid
from ..conversations import conversation_of
from ..operations import Answer, Call, Resource, operation, resource
from ..resources.tasks import SUBMIT_ERRORS
from ..waiting import wait_for_end
from ..workloads import idempotency_key, require_sound
from .failures import failure_of_info
from .openai_chat import ANSWER_HEADERS, REQUEST_HEADERS
from .openai_embeddings import EmbeddingUsageBody, without_result
from .parameters import fields_of, ignored_parameters, name_or_refuse
from .sampling_request import priority_of
from .submission import named, submit

#: most documents of one request
DOCUMENTS: Final = 2048


class RerankRequest(Struct, kw_only=True, omit_defaults=True):
    """What Jina's and Cohere's clients send, and our own beside it."""

    model: Name
    query: Text
    #: texts, or objects with ``text``
    documents: Annotated[list[Text | dict[str, Any]], Meta(min_length=1, max_length=DOCUMENTS)]
    #: so many of the best
    top_n: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    #: results hold the documents again
    return_documents: bool = False
    #: a number as vLLM and LiteLLM take it (above 0 = batch), or our word for it
    priority: int | Literal["interactive", "batch"] | None = None
    # --- our own ---
    task_id: Uuid | None = None
    session_id: Uuid | None = None
    engine: str | None = None
    deadline_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] | None = None
    cancel_on_disconnect: bool | None = None
    placement: PlacementRequest | None = None


KNOWN: Final = fields_of(RerankRequest)
#: the API's names of what errors name by a task's fields
NAMES: Final = {"model_ref": "model", "inputs": "documents", "workload": "model"}


class RankedBody(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One document, the best first."""

    #: among the documents of the request
    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class RerankBody(Struct, frozen=True, kw_only=True):
    """Documents by how well they fit."""

    id: str
    object: str
    model: str
    results: list[RankedBody]
    usage: EmbeddingUsageBody
    #: as Cohere's clients read it
    meta: dict[str, Any]


def texts_of(documents: list[str | dict[str, Any]]) -> list[str]:
    """The documents' texts. :raises InvalidParamsError: one has none."""
    texts = []
    for at, document in enumerate(documents):
        text = document if isinstance(document, str) else document.get("text")
        if not isinstance(text, str):
            msg = f"documents.{at}.text: expected a text"
            raise InvalidParamsError(msg, field=f"documents.{at}.text", got=None, expected='a text or {"text": "..."}')
        texts.append(text)
    return texts


def ranked(scores: list[float], top_n: int | None) -> list[tuple[int, float]]:
    """``(index, score)``, the best first; those that fit alike in their order."""
    order = sorted(enumerate(scores), key=lambda pair: (-pair[1], pair[0]))
    return order if top_n is None else order[:top_n]


class _Rerank(Resource):
    async def answer(self, call: Call, body: RerankRequest, raw: bytes) -> Answer:
        headers = name_or_refuse(
            call, ignored_parameters(raw, KNOWN), strict=self.context.settings.api.strict_parameters
        )
        texts = texts_of(body.documents)
        request = TaskRequest(
            workload="rerank",
            model_ref=body.model,
            inputs=texts,
            query=body.query,
            priority=priority_of(body.priority),
            task_id=body.task_id,
            engine=body.engine,
            deadline_ms=body.deadline_ms,
            cancel_on_disconnect=body.cancel_on_disconnect,
            placement=body.placement,
        )
        with named(NAMES):
            require_sound(request)
        task = await submit(
            self,
            call,
            request,
            api="openai.rerank",
            conversation=conversation_of(call, self.services, session_id=body.session_id),
            idempotency_key=idempotency_key(call),
            names=NAMES,
        )
        headers |= {"x-task-id": task.task_id, **task.budget}
        info = await wait_for_end(self.services, call, task.task_id)
        if info.state == "failed":
            raise failure_of_info(info)
        if info.scores is None:
            raise without_result(info.state)
        results = []
        for index, score in ranked(info.scores, body.top_n):
            document = body.documents[index] if body.return_documents else None
            results.append(
                RankedBody(
                    index=index,
                    relevance_score=score,
                    document={"text": document} if isinstance(document, str) else document,
                )
            )
        tokens = info.usage.prompt_tokens
        said = RerankBody(
            id=f"rerank-{task.task_id}",
            object="list",
            model=body.model,
            results=results,
            usage=EmbeddingUsageBody(prompt_tokens=tokens, total_tokens=tokens),
            meta={"billed_units": {"search_units": 1}, "tokens": {"input_tokens": tokens}},
        )
        return Answer(said, headers=headers)


_ERRORS = (*SUBMIT_ERRORS, BudgetExhaustedError)


@resource("/v1/rerank", tag="openai", shape="openai")
class RerankResource(_Rerank):
    """Ranking of documents."""

    @operation("Rank documents.", errors=_ERRORS, request_headers=REQUEST_HEADERS, answer_headers=ANSWER_HEADERS)
    async def on_post(self, call: Call, body: RerankRequest, raw: bytes) -> RerankBody | Answer:
        """Results come with the best first; `index` is the place in the request. `documents` are texts, or objects with
        `text`; `return_documents` gives them back."""
        return await self.answer(call, body, raw)


@resource("/rerank", tag="openai", shape="openai")
class BareRerankResource(_Rerank):
    """Ranking of documents, as Jina's clients ask."""

    @operation("Rank documents.", errors=_ERRORS, request_headers=REQUEST_HEADERS, answer_headers=ANSWER_HEADERS)
    async def on_post(self, call: Call, body: RerankRequest, raw: bytes) -> RerankBody | Answer:
        """The same as `/v1/rerank`."""
        return await self.answer(call, body, raw)


@resource("/v2/rerank", tag="openai", shape="openai")
class CohereRerankResource(_Rerank):
    """Ranking of documents, as Cohere's clients ask."""

    @operation("Rank documents.", errors=_ERRORS, request_headers=REQUEST_HEADERS, answer_headers=ANSWER_HEADERS)
    async def on_post(self, call: Call, body: RerankRequest, raw: bytes) -> RerankBody | Answer:
        """The same as `/v1/rerank`."""
        return await self.answer(call, body, raw)
