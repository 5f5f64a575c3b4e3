"""Services that answer from scripts, and an ASGI client that can leave at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, cast

import msgspec

from llama_orch.core.errors import ModelNotFoundError, NotFoundError
from llama_orch.core.projections.head import Head
from llama_orch.core.projections.sessions import SessionState
from llama_orch.core.services.bodies import RequestBody
from llama_orch.core.services.budgets import BudgetService
from llama_orch.core.services.caller import Caller
from llama_orch.core.services.estimate_views import EstimateViews
from llama_orch.core.services.estimates import Estimator
from llama_orch.core.services.gpus import HostView
from llama_orch.core.services.keys import KeyService
from llama_orch.core.services.limits import RateLimits
from llama_orch.core.services.price_list import PriceList
from llama_orch.core.services.sessions import SessionView
from llama_orch.core.services.tasks import TaskInfo, Usage
from llama_orch.core.settings import Settings
from llama_orch.core.types import PoolView, TaskRequest

TASK = "11111111-2222-3333-4444-555555555555"


class Admitted(msgspec.Struct):
    task_id: str = TASK
    queue_position: int = 2
    predicted_start_ms: int = 30
    predicted_start_ms_p10: int = 10
    predicted_start_ms_p90: int = 90
    backoff_ms: int = 0
    attached: bool = False
    seq: int = 1


class EmptyStore:
    """A journal's store without a frame."""

    def frames(self, first: int, last: int | None = None) -> Iterator[Any]:
        return iter(())

    facts = frames

    def frames_at(self, numbers: Sequence[int]) -> list[Any]:
        return []

    def head_note(self) -> None:
        return None

    def size_bytes(self) -> int:
        return 0


class FakeJournal:
    """A journal with an empty head, that commits nothing."""

    def __init__(self) -> None:
        self.head = Head()
        self.status = "ok"
        self.commit_seconds: list[float] = []
        self.observers: list[Callable[[Any], None]] = []
        self.committed_frame = 0
        self.store = EmptyStore()

    def now_ns(self) -> int:
        return 1_700_000_000_000_000_000

    def task(self, task_id: str) -> None:
        """No task is in memory."""

    def on_committed(self, observer: Callable[[Any], None]) -> None:
        self.observers.append(observer)

    def on_rebuilt(self, observer: Callable[[], None]) -> None:
        """It never is."""

    def describe(self) -> dict[str, Any]:
        return {"status": self.status}


class FakeServices:
    """Every service in one object; what it was asked stands in ``asked``."""

    def __init__(self) -> None:
        self.admission = self.tasks = self.pools = self.capabilities = self.readers = self
        self.draining = self.reloading = FakeChanges(self)
        self.cancel = FakeCancel(self)
        self.streams = FakeStreams(self)
        self.tokens = FakeTokens(self)
        self.responses = FakeResponses()
        self.gpus = FakeGpus()
        self.dispatcher = FakeDispatcher()
        self.explaining = FakeExplaining()
        self.journal = FakeJournal()
        self.budgets = BudgetService(cast("Any", self.journal), Settings(), PriceList({}))
        self.sessions = FakeSessions()
        self.keys = KeyService(cast("Any", self.journal), bytes, cast("Any", None))
        self.limits = RateLimits(cast("Any", self.journal))
        self.estimates = EstimateViews(cast("Any", self.journal), Estimator())
        self.asked: list[tuple[str, Any]] = []
        #: raised by whatever is asked next
        self.error: Exception | None = None
        self.items: list[Any] = []
        self.pool_views = [
            PoolView(
                pool_id="m", engine="mock", model_ref="mock", ready=True, draining=False, slots=1, leases=0, ctx=10
            )
        ]
        #: streams do not end by themselves
        self.endless = False
        self.info = TaskInfo(
            task_id=TASK,
            state="completed",
            model_ref="mock",
            owner="local",
            priority="interactive",
            text="hello",
            finish_reason="stop",
            created_ms=1_700_000_000_000,
            usage=Usage(3, 1, 2, 5),
        )
        self.open = 0
        self.detached: list[bool] = []

    def _ask(self, what: str, value: Any) -> None:
        self.asked.append((what, value))
        if self.error is not None:
            raise self.error

    # admission
    async def submit(self, request: TaskRequest, caller: Caller, **rest: Any) -> Admitted:
        self._ask("submit", (request, caller, rest))
        return Admitted()

    def group_of(self, model: str) -> str:
        if model != "mock":
            raise ModelNotFoundError(f"no pool serves the model {model!r}", field="model_ref", got=model)
        return model

    # tasks
    def known(self, task_id: str) -> None:
        if task_id != TASK:
            raise NotFoundError(f"there is no task {task_id}", field="task_id", got=task_id)

    async def get(self, task_id: str, caller: Caller, *, text: bool = True) -> TaskInfo:
        self._ask("get", task_id)
        self.known(task_id)
        return self.info

    async def wait(self, task_id: str, caller: Caller, timeout_ms: int) -> TaskInfo:
        self._ask("wait", (task_id, timeout_ms))
        if self.endless:
            await asyncio.get_running_loop().create_future()
        return self.info

    async def page(self, caller: Caller, **rest: Any) -> tuple[list[TaskInfo], str]:
        self._ask("page", rest)
        return [self.info], ""

    async def decision(self, task_id: str, caller: Caller) -> dict[str, Any]:
        self._ask("decision", task_id)
        self.known(task_id)
        return {"task_id": task_id, "state": "queued", "decisions": [], "waiting_for": {}}

    def queue(self, limit: int) -> list[dict[str, Any]]:
        self._ask("queue", limit)
        return []

    # pools, capabilities
    def views(self) -> list[PoolView]:
        return self.pool_views

    def state(self, pool_id: str) -> None:
        if pool_id != "m":
            raise NotFoundError(f"there is no pool {pool_id!r}", field="pool_id", got=pool_id)

    def health(self, pool_id: str) -> dict[str, Any]:
        self.state(pool_id)
        return {"pool_id": pool_id}

    def report(self, caller: Caller) -> dict[str, Any]:
        return {"engines": []}

    def models(self) -> list[dict[str, Any]]:
        return []

    # readers
    def attach(self, task_id: str) -> None:
        self.open += 1

    def detach(self, task_id: str, caller: Caller, *, gone: bool) -> None:
        self.open -= 1
        self.detached.append(gone)


class FakeSessions:
    """`services.sessions`: knows one."""

    def __init__(self) -> None:
        state = SessionState(session_id=TASK, owner="local", ttl_ms=1000, turn_limit=8)
        self.one = SessionView(state=state, ttl_ms_remaining=500, kv_warmth=False, kv_bytes=0, remaining=None)

    def views(self, caller: Caller) -> list[SessionView]:
        return [self.one]

    def get(self, session_id: str, caller: Caller) -> SessionView:
        if session_id != TASK:
            raise NotFoundError(f"there is no open session {session_id}", field="session_id", got=session_id)
        return self.one

    async def create(self, caller: Caller, **rest: Any) -> SessionView:
        return self.one

    async def delete(self, session_id: str, caller: Caller, correlation: str = "") -> None:
        """It is gone in any case."""


class FakeChanges:
    """`services.draining` and `services.reloading`."""

    def __init__(self, services: FakeServices) -> None:
        self._services = services
        self.draining = False

    async def drain(self, pool_id: str, caller: Caller, **rest: Any) -> FakeChanges:
        self._services._ask("drain", (pool_id, rest))
        self._services.state(pool_id)
        self.draining = True
        return self

    async def undrain(self, pool_id: str, caller: Caller, **rest: Any) -> FakeChanges:
        self._services._ask("undrain", pool_id)
        self._services.state(pool_id)
        self.draining = False
        return self

    async def reload(self, pool_id: str, new_model_ref: str, caller: Caller, **rest: Any) -> str:
        self._services._ask("reload", (pool_id, new_model_ref, rest))
        self._services.state(pool_id)
        return rest["handover"] or "new-first"


class FakeResponses:
    """No response is stored."""

    async def get(self, task_id: str, caller: Caller) -> Any:
        raise NotFoundError("this task is no stored response")

    async def delete(self, task_id: str, caller: Caller, *, correlation: str) -> None:
        raise NotFoundError("this task is no stored response")


class FakeTokens:
    """`services.tokens`: a token per character."""

    def __init__(self, services: FakeServices) -> None:
        self._services = services

    async def tokenize(self, group: str, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        self._services._ask("tokenize", (group, text, add_special, parse_special))
        return [0] * add_special + [ord(character) for character in text]

    async def detokenize(self, group: str, ids: Sequence[int]) -> str:
        self._services._ask("detokenize", (group, list(ids)))
        return "".join(chr(token) for token in ids if token)

    async def prompt(self, group: str, body: RequestBody) -> str:
        self._services._ask("prompt", (group, body))
        return "".join(f"<{message.role}>{message.content}" for message in body.messages or ())


class FakeCancel:
    """`services.cancel`."""

    def __init__(self, services: FakeServices) -> None:
        self._services = services

    async def cancel(self, task_id: str, caller: Caller, **rest: Any) -> None:
        self._services._ask("cancel", (task_id, rest))
        self._services.known(task_id)


class FakeDispatcher:
    """`services.dispatcher`: attempts as a test sets them."""

    def __init__(self) -> None:
        self.attempts: dict[str, Any] = {}


class FakeGpus:
    """`services.gpus`: hosts as a test sets them."""

    def __init__(self) -> None:
        self.hosts: list[HostView] = []

    def views(self) -> list[HostView]:
        return self.hosts

    def view_of_pool(self, pool: Any) -> None:
        return None


class FakeExplaining:
    """`services.explaining`: one model, which nobody waits for."""

    def model(self, model_ref: str) -> dict[str, Any]:
        if model_ref != "mock":
            raise ModelNotFoundError(f"no pool serves the model {model_ref!r}", field="model_ref", got=model_ref)
        return {"model_ref": model_ref, "words": []}

    def waits(self, task_id: str) -> str:
        return ""


class FakeStreams:
    """`services.streams`."""

    def __init__(self, services: FakeServices) -> None:
        self._services = services
        self.metrics_dropped = 0

    async def open(self, task_id: str, **rest: Any) -> AsyncIterator[Sequence[Any]]:
        services = self._services
        services._ask("open", (task_id, rest))
        services.known(task_id)

        async def items() -> AsyncIterator[Sequence[Any]]:
            for one in services.items:
                if isinstance(one, Exception):
                    raise one
                yield one
            if services.endless:
                await asyncio.get_running_loop().create_future()

        return items()


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes
    #: pieces of the body, as they were sent
    pieces: list[bytes]

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class AsgiClient:
    """Speaks ASGI to an application.

    :param leave_after: the client leaves once it got so many pieces of the body; ``None`` = it stays.
    """

    def __init__(self, app: Any, leave_after: int | None = None) -> None:
        self._app = app
        self._leave_after = leave_after

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        query: str = "",
        headers: dict[str, str] | None = None,
        chunks: Sequence[bytes] | None = None,
        host: str | None = "127.0.0.1:8080",
    ) -> Answer:
        given = {"host": host, **(headers or {})} if host is not None else (headers or {})
        if chunks is None:
            given = {"content-length": str(len(body)), **given}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode("ascii"),
            "root_path": "",
            "scheme": "http",
            "server": ("127.0.0.1", 8080),
            "client": ("127.0.0.1", 1),
            "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in given.items()],
        }
        pending = list(chunks if chunks is not None else [body])
        left = asyncio.Event()
        if self._leave_after == 0:
            asyncio.get_running_loop().call_later(0.01, left.set)
        status = 0
        answered: dict[str, str] = {}
        pieces: list[bytes] = []
        complete = False

        async def receive() -> dict[str, Any]:
            if pending:
                return {"type": "http.request", "body": pending.pop(0), "more_body": bool(pending)}
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, answered, complete
            if message["type"] == "http.response.start":
                assert status == 0, "two answers"
                status = message["status"]
                answered = {k.decode(): v.decode("latin-1") for k, v in message["headers"]}
                return
            assert status, "a body before its start"
            assert not complete, "a body after its end"
            if message.get("body"):
                pieces.append(message["body"])
                if len(pieces) == self._leave_after:
                    left.set()
            complete = not message.get("more_body", False)

        await asyncio.wait_for(self._app(scope, receive, send), 10)
        assert complete or left.is_set(), "the answer has no end"
        return Answer(status, answered, b"".join(pieces), pieces)
