"""The client of a server that speaks OpenAI's API: what every such plugin shares."""

from __future__ import annotations

import abc
import asyncio
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from .. import (
    FEATURES,
    AttemptFailure,
    AttemptSink,
    ConfigError,
    EngineHealth,
    EngineState,
    GenerateJob,
    InvalidParamsError,
    UnavailableError,
)
from ._http import HttpClient, HttpError, HttpResponse
from ._openai_attempt import Attempt, Planned
from ._openai_config import OPTIONS, WORKLOADS, check_options, headers_of, names_of, split_url
from ._openai_dialects import (
    DIALECTS,
    Ask,
    Dialect,
    RequestError,
    chat_body,
    completion_body,
    dialect_of,
    lacks,
    with_extras,
)
from ._openai_frames import OpenAIStream
from ._openai_results import WholeAnswer, embedding_body, rerank_body
from ._openai_wire import ModelItem, WireError, decode_models, error_of_body, failure_of

QUICK_TIMEOUT_S: Final = 5.0
SLOW_TIMEOUT_S: Final = 60.0
#: tasks at once at a server that does not tell how many it does
DEFAULT_SLOTS: Final = 4
#: where each workload is asked for
_ROUTES: Final = {
    "completion": "/completions",
    "chat": "/chat/completions",
    "embedding": "/embeddings",
    "rerank": "/rerank",
}
#: names of models that an error lists
_LISTED: Final = 10


class AskError(UnavailableError):
    """A question had no answer; ``failure`` is what that means for an attempt which needs it."""

    def __init__(self, failure: AttemptFailure, engine: str) -> None:
        remedy = "Look at that server: whether it is up, what it serves, what its log says."
        super().__init__(failure.message, remedy=remedy, engine=engine)
        self.failure = failure


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """What a look at the server's models told."""

    item: ModelItem
    dialect: Dialect
    #: 0 = not known
    ctx: int


class OpenAIClient(abc.ABC):
    """Client of one server.

    Args:
        config: ``url`` and the keys of the plugin's options, all optional, beside the pool's own (``model``, ``slots``,
            ``ctx``, ``device``).
        name: of the plugin.
        options: keys that it takes.
        dialect: where there is only one.
        below: the API's path where the URL has one that does not end in ``/v1``.

    Raises:
        ConfigError: the URL is none, an option is unknown or has a value that it does not take, or an environment variable
            is not set.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        name: str,
        options: Mapping[str, str] = OPTIONS,
        dialect: Dialect | None = None,
        below: str = "",
    ) -> None:
        self.name = name
        check_options(config, options, name)
        headers, self._secrets = headers_of(config)
        root, self.api = split_url(str(config.get("url") or ""), below, name)
        try:
            self.http = HttpClient(root, headers=headers, ca_file=str(config.get("ca_file") or ""))
        except (ValueError, OSError) as error:
            field = "ca_file" if isinstance(error, OSError) else "url"
            raise ConfigError(str(error), field=field, got=config.get(field)) from error
        told = str(config.get("served_model") or "")
        self._model_is_given = bool(told)
        self._model = told or str(config.get("model") or "")
        fixed = DIALECTS[config["dialect"]] if config.get("dialect") else dialect
        self._dialect = fixed
        #: as configured, or as they were found
        self._features = names_of(config, "features", FEATURES)
        self._workloads = names_of(config, "workloads", WORKLOADS)
        self._native_n = config.get("native_n")
        self._max_tokens_field = str(config.get("max_tokens_field") or "max_tokens")
        self._extra: Mapping[str, Any] = config.get("extra_body") or {}
        self._ctx = int(config.get("ctx") or 0)
        self.slots = int(config.get("slots") or DEFAULT_SLOTS)
        self.device = str(config.get("device") or "cpu")
        self._count = itertools.count()
        self.server: Server | None = None
        #: attempts that may rightly be at work there
        self.live: set[Attempt] = set()

    # --- what it is

    async def learn(self) -> Server:
        """Look which models there are, once.

        Raises:
            UnavailableError: the server does not answer, or has no such model.
        """
        if self.server is None:
            self.server = self._server(await self.models())
            self._model = self.server.item.id if not self._model_is_given else self._model
        return self.server

    async def models(self) -> list[ModelItem]:
        """What ``/models`` lists.

        Raises:
            UnavailableError: the server does not answer, or not as it must.
        """
        path = f"{self.api}/models"
        answer = await self.ask("GET", path, b"", QUICK_TIMEOUT_S)
        try:
            return decode_models(answer.body).data
        except (msgspec.MsgspecError, ValueError) as error:
            msg = f"{path}: this is no server of OpenAI's API: {error}"
            raise UnavailableError(msg, engine=self.name) from error

    def _server(self, items: Sequence[ModelItem]) -> Server:
        wanted = self._model
        found = [i for i in items if wanted in (i.id, *i.aliases) or i.id == f"{wanted}:latest"]
        if self._model_is_given:
            found = found or [ModelItem(id=wanted, owned_by=items[0].owned_by if items else "")]
        elif not wanted and len(items) == 1:
            found = list(items)
        if not found:
            have = ", ".join(item.id for item in items[:_LISTED]) or "none"
            msg = f"the server has no model {wanted!r}; it has {have}"
            remedy = "Name it in provisioning.options.served_model, or as the pool's model."
            raise UnavailableError(msg, remedy=remedy, engine=self.name)
        item = found[0]
        return Server(item=item, dialect=self._dialect or dialect_of(item.owned_by), ctx=self._ctx or item.ctx)

    async def health_by_models(self) -> EngineHealth:
        """Health, where the list of models has to do as a sign of life."""
        try:
            answer = await self.http.request("GET", f"{self.api}/models", timeout_s=QUICK_TIMEOUT_S)
        except HttpError as error:
            return EngineHealth(state=EngineState.UNREACHABLE, detail=error.message)
        if answer.status == 200:
            return EngineHealth(state=EngineState.READY)
        detail = self.explained(error_of_body(answer.status, answer.body).message)
        if answer.status in (404, 405):
            detail = (
                f"there is no {self.api}/models below the pool's url ({detail}); end it in /v1 where its API is there"
            )
        state = EngineState.LOADING if answer.status == 503 else EngineState.FAILED
        return EngineHealth(state=state, detail=detail)

    async def abilities(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Workloads and features, as configured; else the routes that are there, and what the dialect's servers can.

        Raises:
            UnavailableError: the server does not answer.
        """
        server = await self.learn()
        if self._workloads is None:
            # A request without its input does no work: the route is there, or it is not.
            body = with_extras({"model": self._model}, {})
            found = []
            for workload, route in _ROUTES.items():
                answer = await self.exchange("POST", self.api + route, body, SLOW_TIMEOUT_S)
                if answer.status in (401, 403):
                    message = error_of_body(answer.status, answer.body).message
                    raise UnavailableError(self.explained(f"{route}: {message}"), engine=self.name)
                if answer.status in (200, 400, 422) or (answer.status == 500 and workload in ("completion", "chat")):
                    found.append(workload)
            self._workloads = tuple(found)
        features = self.features(server)
        if "completion" not in self._workloads:
            features = tuple(feature for feature in features if feature != "continue")
        return self._workloads, features

    def features(self, server: Server) -> tuple[str, ...]:
        """What it can beside workloads."""
        return self._features if self._features is not None else server.dialect.features

    def model_digest(self, server: Server) -> str:
        """``meta:…`` over what the server tells of the model."""
        item = server.item
        meta = item.meta or None
        return _meta(item.id, item.root, item.max_model_len, meta and [meta.n_params, meta.size, meta.n_vocab])

    def tokenizer_digest(self, server: Server) -> str:
        """``meta:…`` over what the server tells of the tokenizer, which is hardly more than whose it is."""
        item = server.item
        return _meta(item.id, item.root, item.meta and [item.meta.vocab_type, item.meta.n_vocab])

    @property
    def model(self) -> str:
        """The model's name at the server."""
        return self._model

    # --- work

    def generate(self, job: GenerateJob, sink: AttemptSink) -> Attempt:
        attempt = Attempt(self, job, sink)
        attempt.send()
        return attempt

    def plan(self, job: GenerateJob, first: int) -> Planned | None:
        """The request that makes answer ``first`` and those that come with it.

        Raises:
            RequestError: this server cannot do the job.
        """
        if job.workload not in _ROUTES:
            msg = f"workload: {job.workload!r} is none that this engine does"
            raise RequestError(msg)
        server = self.server
        if server is None:
            return None
        reason = lacks(job, self.features(server), self._workloads or ())
        if reason:
            raise RequestError(reason)
        if job.workload in ("embedding", "rerank"):
            body = (embedding_body if job.workload == "embedding" else rerank_body)(job, self._model)
            answer = WholeAnswer(job.workload, len(job.inputs))
            path = self.api + _ROUTES[job.workload]
            return Planned(path=path, body=with_extras(body, self._extra), answer=answer)
        native = server.dialect.native_n if self._native_n is None else bool(self._native_n)
        n = job.n if native else 1
        ask = Ask(
            model=self._model,
            n=n,
            # With several seeds in a row the last may be beyond what is a seed.
            seed=(job.seed + first) % 2**32 if "seed" in self.features(server) else -1,
            ctx=server.ctx,
            request_id=f"{job.task_id}-{job.attempt}-{next(self._count)}",
        )
        if job.chat is not None:
            route = "/chat/completions"
            fields = chat_body(job, server.dialect, ask, max_tokens_field=self._max_tokens_field)
        else:
            prompt = self.prompt_of(job)
            if prompt is None:
                return None
            route = "/completions"
            fields = completion_body(job, server.dialect, ask, prompt)
        top = job.top_logprobs if job.logprobs else -1
        return Planned(
            path=self.api + route,
            body=with_extras(fields, self._extra),
            answer=OpenAIStream(n=n, offset=first, top=top),
            choices=n,
        )

    def prompt_of(self, job: GenerateJob) -> str | Sequence[int] | None:
        """What is to be completed; ``None`` = it has to be asked for first.

        Raises:
            RequestError: it cannot be put together.
        """
        if not job.prompt_ids:
            return job.prompt + job.prefix
        if job.prefix:
            msg = "a prompt of token ids cannot be continued from a text at a server that does not tokenize"
            raise RequestError(msg)
        return list(job.prompt_ids)

    async def prepare(self, job: GenerateJob) -> AttemptFailure | None:
        """Ask what :meth:`plan` needs; the failure that it is when there is no answer."""
        try:
            await self.look_up(job)
        except AskError as error:
            return error.failure
        except UnavailableError as error:
            return AttemptFailure(kind="unreachable", message=error.message)
        except InvalidParamsError as error:
            return AttemptFailure(kind="invalid", message=error.message, retriable=False)
        return None

    async def look_up(self, job: GenerateJob) -> None:
        """Ask what :meth:`plan` needs.

        Raises:
            UnavailableError: the server does not answer, or has no such model.
            InvalidParamsError: it refuses what was asked.
        """
        await self.learn()

    @abc.abstractmethod
    async def slot_free(self, attempt: Attempt) -> str:
        """Wait until the slot of a broken-off attempt is free, or the server gone."""

    # --- asking

    async def exchange(self, method: str, path: str, body: bytes, timeout_s: float) -> HttpResponse:
        """An answer of any status.

        Raises:
            UnavailableError: there was none.
        """
        try:
            return await self.http.request(method, path, body, timeout_s=timeout_s)
        except HttpError as error:
            kind = "unreachable" if error.kind == "timeout" else error.kind
            raise AskError(AttemptFailure(kind=kind, message=f"{path}: {error.message}"), self.name) from error

    async def ask(self, method: str, path: str, body: bytes, timeout_s: float) -> HttpResponse:
        """An answer of status 200.

        Raises:
            UnavailableError: there was none.
            InvalidParamsError: the server refuses what was asked.
        """
        answer = await self.exchange(method, path, body, timeout_s)
        if answer.status == 200:
            return answer
        msg = self.explained(f"{path}: {error_of_body(answer.status, answer.body).message}")
        if answer.status in (400, 413, 422):
            raise InvalidParamsError(msg, engine=self.name)
        raise AskError(failure_of(answer.status, WireError(message=msg)), self.name)

    def explained(self, text: str) -> str:
        """A text from the server as it may be shown: it may repeat the secrets that it was sent."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


async def after_release(seconds: float, closed: asyncio.Event) -> bool:
    """Wait for as long as a server takes to notice that nobody listens; whether the client was closed meanwhile."""
    try:
        async with asyncio.timeout(seconds):
            await closed.wait()
    except TimeoutError:
        return False
    return True


def _meta(*told: Any) -> str:
    return f"meta:{hashlib.sha256(msgspec.json.encode(told)).hexdigest()}"
