"""``/v1/completions``: OpenAI's text completions, each prompt a task of its own (API-2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...core.errors import BudgetExhaustedError, ConflictError, OrchError
from ...core.services.bodies import request_digest
from ...core.types import TaskRequest
from ..conversations import conversation_of
from ..operations import Answer, Call, Resource, operation, resource
from ..render.openai_text import TextRenderer, text_completion
from ..resources.tasks import SUBMIT_ERRORS
from ..streaming import EVENT_STREAM, STREAM_HEADERS, StreamPlan
from ..waiting import wait_for_ends
from ..workloads import idempotency_key
from .completion_request import KNOWN, NAMES, CompletionRequest, prompts_of, tasks_of
from .failures import failure_of_event, failure_of_info
from .merging import Merged, Part
from .openai_chat import ANSWER_HEADERS, REQUEST_HEADERS, UsageBody
from .parameters import ignored_parameters, name_or_refuse
from .sampling_request import WITHIN
from .submission import Submitted, follow, named, streamed, submit


class TextChoiceBody(msgspec.Struct, frozen=True, kw_only=True):
    """One answer to one prompt."""

    text: str
    #: those of the second prompt follow those of the first
    index: int
    logprobs: dict[str, Any] | None
    finish_reason: str


class TextCompletionBody(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's ``text_completion``."""

    id: str
    object: str
    created: int
    model: str
    choices: list[TextChoiceBody]
    usage: UsageBody


class _Parts:
    """Renders what comes of several tasks."""

    def __init__(self, renderer: TextRenderer) -> None:
        self._renderer = renderer
        self.broken = renderer.broken

    def render(self, items: Sequence[Part]) -> tuple[bytes, bool]:
        return self._renderer.render_parts([(part.number, part.item) for part in items])


@resource("/v1/completions", tag="openai", shape="openai")
class CompletionsResource(Resource):
    """Text completions."""

    @operation(
        "Complete a text.",
        errors=(*SUBMIT_ERRORS, BudgetExhaustedError),
        request_headers=REQUEST_HEADERS,
        answer_headers=ANSWER_HEADERS,
    )
    async def on_post(self, call: Call, body: CompletionRequest, raw: bytes) -> TextCompletionBody | Answer:
        """One prompt or several, as texts or token ids, streaming or not. Each prompt is a task; `x-task-id` names all of
        them, separated by commas. What is not served is refused by name where it would change the answer, else named in
        `X-Ignored-Parameters`."""
        requests = tasks_of(body)
        headers = name_or_refuse(
            call, ignored_parameters(raw, KNOWN, (), WITHIN), strict=self.context.settings.api.strict_parameters
        )
        echoes = await self._echoes(call, body)
        tasks = await self._submit(call, body, requests)
        headers |= {"x-task-id": ", ".join(task.task_id for task in tasks), **tasks[-1].budget}
        logprobs = bool(requests[0].logprobs)
        if body.stream:
            options = body.stream_options
            renderer = TextRenderer(
                task_id=tasks[0].task_id,
                model=body.model,
                created=tasks[0].created,
                include_usage=options is not None and options.include_usage,
                correlation=call.correlation,
                failure=failure_of_event,
                echoes=echoes,
                n=body.n or 1,
                logprobs=logprobs,
            )
            if len(tasks) == 1:
                return await streamed(self, call, tasks[0].task_id, renderer, headers)
            return await self._stream_all(call, tasks, renderer, headers)
        infos = await wait_for_ends(self.services, call, [task.task_id for task in tasks])
        failed = next((info for info in infos if info.state == "failed"), None)
        if failed is not None:
            raise failure_of_info(failed)
        said = text_completion(infos, model=body.model, created=tasks[0].created, echoes=echoes, logprobs=logprobs)
        return Answer(said, headers=headers)

    async def _echoes(self, call: Call, body: CompletionRequest) -> list[str]:
        """What the answers to each prompt begin with."""
        prompts = prompts_of(body)
        if not body.echo:
            return [""] * len(prompts)
        return [one if isinstance(one, str) else await self._text(call, body.model, one) for one in prompts]

    async def _text(self, call: Call, model: str, ids: list[int]) -> str:
        with named({**NAMES, "tokens": "prompt"}):
            call.caller.require_model(model)
            group = self.services.admission.group_of(model)
            text: str = await self.services.tokens.detokenize(group, ids)
        return text

    async def _submit(self, call: Call, body: CompletionRequest, requests: list[TaskRequest]) -> list[Submitted]:
        """Admit all tasks, or none."""
        key = idempotency_key(call)
        conversation = conversation_of(
            call, self.services, session_id=body.session_id, hint=body.prompt_cache_key or ""
        )
        # The key's first task says what the others are: with another list of prompts the key is used for something else.
        shown = {"prompts": [request_digest(request) for request in requests]} if len(requests) > 1 else None
        tasks: list[Submitted] = []
        try:
            for at, request in enumerate(requests):
                task = await submit(
                    self,
                    call,
                    request,
                    api="openai.completions",
                    conversation=conversation,
                    idempotency_key=key if key is None or at == 0 else f"{key}\n{at}",
                    shown=shown if at == 0 else None,
                    names=NAMES,
                )
                tasks.append(task)
                if at == 0 and task.attached and key is not None:
                    await self._require_same(call, task.task_id, shown)
        except BaseException:
            # Who asked for it will not read what was admitted.
            for task in tasks:
                self.services.readers.attach(task.task_id)
                self.services.readers.detach(task.task_id, call.caller, gone=not task.attached)
            raise
        return tasks

    async def _require_same(self, call: Call, task_id: str, shown: dict[str, Any] | None) -> None:
        _, asked = await self.services.tasks.request_of(task_id, call.caller)
        if asked.shown != shown:
            msg = "this Idempotency-Key was used for a different list of prompts"
            raise ConflictError(msg, field="Idempotency-Key", got="a different body", task_id=task_id)

    async def _stream_all(
        self, call: Call, tasks: list[Submitted], renderer: TextRenderer, headers: dict[str, str]
    ) -> Answer:
        readers, caller = self.services.readers, call.caller
        streams = []
        try:
            for task in tasks:
                streams.append(await follow(self, call, task.task_id))
        except OrchError:
            await Merged(streams).aclose()
            for task in tasks[: len(streams)]:
                readers.detach(task.task_id, caller, gone=False)
            raise

        def closed(gone: bool) -> None:
            for number, task in enumerate(tasks):
                # After a failure the others are left, whether the client is there or not.
                readers.detach(task.task_id, caller, gone=gone or number in renderer.abandoned())

        plan = StreamPlan(Merged(streams), _Parts(renderer), closed)
        return Answer(headers={**headers, **STREAM_HEADERS}, media_type=EVENT_STREAM, stream=plan)
