"""The client for asyncio. Its methods are those of :class:`.sync.Client`; cancelling one of them cancels its request."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx2

from . import calls
from .aio_stream import AsyncFrames, AsyncStream
from .calls import Backoff, Call, may_repeat
from .connection import AGENT, LIMITS, STREAM_SILENCE_S, WAIT_MS, failed_task, timeouts, unreachable
from .errors import BadTokenError, LlamaOrchError, UnreachableError, api_error
from .events import Event, Token, event_of
from .resume import Cursor
from .target import Target, target_of, trust
from .types import Admission, Budget, BudgetCap, Model, NewSession, Pool, Queue, Session, Task, TaskPage, TaskRequest

T = TypeVar("T")


class AsyncClient:
    """Speaks to one llama-orch server; the tasks of one event loop may share it.

    :param url: default: ``LLORCH_URL``, else the server that runs on this user's data directory.
    :param token: the API key; default: ``LLORCH_API_TOKEN``, else what the server's own file says.
    :param timeout_s: longest silence within a call, seconds.
    :param retries: how often a call that may be repeated is sent again after a broken connection, 429 or 503.
    :param stream_retries: how often in a row a broken stream is taken up again; ``None`` = for ever.
    :param silence_s: how long a stream may be without a byte before its connection counts as dead; a server says something
        every ``streams.heartbeat_ms`` (15 s).
    :param ca_file: whom to trust for https; default: ``LLORCH_CA_FILE``, what a server of this machine says, or the system.
    :param client_cert: files of a certificate and its key, for servers that ask for one.
    :param transport: how requests travel, instead of by network.
    :param target: where the server is, instead of ``url`` and ``token``.
    :param sleep: how to pause, seconds; :param rand: for the jitter of pauses; :param new_key: makes Idempotency-Keys.
    :raises LlamaOrchError: the address is none, or no server is named and none runs here.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = 30.0,
        retries: int = 3,
        stream_retries: int | None = 10,
        silence_s: float = STREAM_SILENCE_S,
        ca_file: str | Path | None = None,
        client_cert: tuple[str, str] | None = None,
        agent: str = AGENT,
        transport: httpx2.AsyncBaseTransport | None = None,
        target: Target | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rand: Callable[[], float] = random.random,
        new_key: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._target = target or target_of(url, token)
        self.timeout_s = timeout_s
        self._retries, self._stream_retries, self._silence_s = retries, stream_retries, silence_s
        self._agent, self._sleep, self._rand, self._new_key = agent, sleep, rand, new_key
        self._http = httpx2.AsyncClient(
            verify=trust(self.url, ca_file or self._target.server.ca_file, client_cert),
            trust_env=False,
            transport=transport,
            limits=LIMITS,
        )

    @property
    def url(self) -> str:
        """Where the server answers."""
        return self._target.server.url

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    # --- tasks ----------------------------------------------------------------------------------------------------

    async def submit(self, request: TaskRequest, *, idempotency_key: str | None = None) -> AsyncTaskHandle:
        """Put a task into its queue; returns once it is durable.

        :param idempotency_key: the same key with the same request is the same task, for 24 h; default: a new one, so that
            a repeated attempt of this very call is not a second task.
        :raises ApiError: refused; :raises UnreachableError: no server.
        """
        admission = await self.send(calls.submit(request, idempotency_key or self._new_key()))
        return AsyncTaskHandle(self, admission.task_id, admission)

    def task(self, task_id: str) -> AsyncTaskHandle:
        """A handle for a task that was submitted before."""
        return AsyncTaskHandle(self, task_id)

    async def get(self, task_id: str) -> Task:
        """A task as it stands. :raises NotFoundError: there is none."""
        return await self.send(calls.task(task_id))

    async def tasks(
        self,
        *,
        state: str | None = None,
        model_ref: str | None = None,
        session_id: str | None = None,
        before: str | None = None,
        limit: int | None = None,
    ) -> TaskPage:
        """A page of tasks, newest first; ``before`` is ``next`` of the page before."""
        return await self.send(
            calls.tasks(state=state, model_ref=model_ref, session_id=session_id, before=before, limit=limit)
        )

    async def cancel(self, task_id: str) -> None:
        """Cancel a task; no token comes after it. One that has ended stays as it is. :raises NotFoundError: there is none."""
        await self.send(calls.cancel(task_id))

    async def wait(self, task_id: str) -> Task:
        """The task once it has ended, also across restarts of the server.

        :raises TaskFailedError: it failed; :raises NotFoundError: there is none.
        """
        backoff = self._backoff(self._stream_retries)
        while True:
            found = await self.send(calls.task(task_id, wait_ms=WAIT_MS), backoff=backoff)
            backoff.failures = 0
            if found.ended:
                return failed_task(found)

    def stream(
        self,
        task_id: str,
        *,
        after: str = "",
        progress: bool = False,
        metrics: bool = False,
        restart_lost: bool = False,
    ) -> AsyncStream[Event]:
        """What a task says, from its start or after a frame; taken up again without gap or repetition when it breaks.

        :param after: ``frame_id`` of the last event that was seen.
        :param progress: tell the task's place while it waits; :param metrics: tell how things are while it runs.
        :param restart_lost: go on (:class:`Restarted`) when the server lost what it had sent last.

        The iteration raises TaskFailedError when the task failed, ResumeLostError, StreamBrokenError when the server
        stays away, ApiError when there is no use in asking again.
        """
        frames = self.frames(task_id, after=after, progress=progress, metrics=metrics, restart_lost=restart_lost)
        return AsyncStream(frames, lambda frame: event_of(frame, task_id))

    def frames(
        self,
        task_id: str,
        *,
        after: str = "",
        progress: bool = False,
        metrics: bool = False,
        restart_lost: bool = False,
    ) -> AsyncFrames:
        """As :meth:`stream`, as the frames that the server sent; the end of a failed task is a frame like others."""
        cursor = Cursor(
            task_id,
            after=after,
            progress=progress,
            metrics=metrics,
            restart_lost=restart_lost,
            backoff=self._backoff(self._stream_retries),
        )
        return AsyncFrames(cursor, connect=self._open, pause=self._pause)

    async def decision(self, task_id: str) -> dict[str, Any]:
        """Why a task runs where it does, or what it waits for."""
        return await self.send(calls.decision(task_id))

    # --- the rest -------------------------------------------------------------------------------------------------

    async def sessions(self) -> list[Session]:
        """The caller's open sessions."""
        return (await self.send(calls.sessions())).sessions

    async def session(self, session_id: str) -> Session:
        """One session. :raises NotFoundError: it is not open."""
        return await self.send(calls.session(session_id))

    async def open_session(self, session: NewSession) -> Session:
        """Open a session, with bounds and budgets of its own; a task with a new ``session_id`` opens one too."""
        return await self.send(calls.open_session(session))

    async def end_session(self, session_id: str) -> None:
        """End a session and free what it keeps; nothing happens when it is over."""
        await self.send(calls.end_session(session_id))

    async def budgets(self, scope: str | None = None, subject: str | None = None) -> list[Budget]:
        """Budgets that the caller may see; those of one key or session. :raises NotFoundError: that one has none."""
        return (await self.send(calls.budgets(scope, subject))).budgets

    async def set_budget(self, scope: str, subject: str, cap: BudgetCap) -> Budget:
        """Set what a key or session may spend in a window; what was spent is kept."""
        return await self.send(calls.set_budget(scope, subject, cap))

    async def remove_budget(self, scope: str, subject: str, *, window: str | None = None) -> None:
        """Remove the budget of a window, or all of them. :raises NotFoundError: there is none."""
        await self.send(calls.remove_budget(scope, subject, window))

    async def queue(self, *, limit: int | None = None) -> Queue:
        """What waits, per model; at most ``limit`` tasks of each."""
        return await self.send(calls.queue(limit))

    async def pools(self) -> list[Pool]:
        """All pools."""
        return (await self.send(calls.pools())).pools

    async def pool_health(self, pool_id: str) -> dict[str, Any]:
        """How a pool is, with its last error. :raises NotFoundError: there is none."""
        return await self.send(calls.pool_health(pool_id))

    async def models(self) -> list[Model]:
        """Models and their aliases, ready or not."""
        return (await self.send(calls.models())).data

    async def capabilities(self) -> dict[str, Any]:
        """Engines, models, limits and devices as they are now."""
        return await self.send(calls.capabilities())

    # --- calls ----------------------------------------------------------------------------------------------------

    async def send(self, call: Call[T], *, backoff: Backoff | None = None) -> T:
        """Send any call, again where that is safe and may help.

        :raises ApiError: refused; :raises UnreachableError: no server.
        """
        pauses = backoff or self._backoff(self._retries)
        while True:
            try:
                return await self._send_once(call)
            except LlamaOrchError as error:
                if isinstance(error, BadTokenError) and self._target.look_again():
                    continue  # started again, with another key in its file
                pause_s = pauses.again(error) if may_repeat(call, error) else None
                if pause_s is None:
                    raise
                if isinstance(error, UnreachableError):
                    self._target.look_again()
            await self._sleep(pause_s)

    async def lines(self, call: Call[Any]) -> AsyncIterator[bytes]:
        """The lines of a long answer as they come. :raises UnreachableError: also when it breaks off before its end."""
        try:
            async with self._http.stream(**self._request(call, self.timeout_s)) as response:
                if response.status_code >= 300:
                    raise api_error(response.status_code, await response.aread(), response.headers)
                rest = b""
                async for chunk in response.aiter_bytes():
                    *whole, rest = (rest + chunk).split(b"\n")
                    for line in whole:
                        yield line
                if rest:
                    yield rest
        except httpx2.HTTPError as error:
            raise unreachable(error, self.url) from error

    async def _send_once(self, call: Call[T]) -> T:
        try:
            response = await self._http.request(**self._request(call, self.timeout_s + call.extra_s))
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise unreachable(error, self.url) from error
        return call.result(response.status_code, response.content, response.headers)

    def _request(self, call: Call[Any], timeout_s: float) -> dict[str, Any]:
        server = self._target.server
        return {
            "method": call.method,
            "url": server.url + call.target,
            "content": call.body,
            "headers": call.all_headers(server.token, self._agent),
            "timeout": timeouts(timeout_s),
        }

    async def _open(self, call: Call[Any]) -> httpx2.Response:
        """The answer of a stream whose body has not been read. :raises ApiError: refused; :raises UnreachableError: no server."""
        try:
            request = self._http.build_request(**self._request(call, self._silence_s))
            response = await self._http.send(request, stream=True)
            if response.status_code != 200:
                error = api_error(response.status_code, await response.aread(), response.headers)
                await response.aclose()
                if isinstance(error, BadTokenError) and self._target.look_again():
                    return await self._open(call)
                raise error
        except (httpx2.HTTPError, httpx2.InvalidURL) as broken:
            raise unreachable(broken, self.url) from broken
        return response

    async def _pause(self, seconds: float) -> None:
        await self._sleep(seconds)
        self._target.look_again()

    def _backoff(self, most: int | None) -> Backoff:
        return Backoff(most, rand=self._rand)


class AsyncTaskHandle:
    """A task of a server."""

    def __init__(self, client: AsyncClient, task_id: str, admission: Admission | None = None) -> None:
        self._client = client
        self.task_id = task_id
        #: how it was accepted, where this client submitted it
        self.admission = admission

    def stream(
        self, *, after: str = "", progress: bool = False, metrics: bool = False, restart_lost: bool = False
    ) -> AsyncStream[Event]:
        """See :meth:`AsyncClient.stream`."""
        return self._client.stream(
            self.task_id, after=after, progress=progress, metrics=metrics, restart_lost=restart_lost
        )

    async def text(self) -> AsyncIterator[str]:
        """What the first answer says aloud, piece by piece. :raises LlamaOrchError: as :meth:`AsyncClient.stream`."""
        async with self.stream() as events:
            async for event in events:
                if isinstance(event, Token) and not event.channel and not event.choice and event.text:
                    yield event.text

    async def wait(self) -> Task:
        """See :meth:`AsyncClient.wait`."""
        return await self._client.wait(self.task_id)

    async def get(self) -> Task:
        """The task as it stands."""
        return await self._client.get(self.task_id)

    async def cancel(self) -> None:
        """See :meth:`AsyncClient.cancel`."""
        await self._client.cancel(self.task_id)

    async def decision(self) -> dict[str, Any]:
        """See :meth:`AsyncClient.decision`."""
        return await self._client.decision(self.task_id)
