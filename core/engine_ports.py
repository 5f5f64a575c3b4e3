"""What the core asks of engines, and what they are asked for: jobs, attempts, launches. Engine plugins implement these Protocols."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from msgspec import Struct

from .entries import EntryBatch


class EngineState(enum.StrEnum):
    """What a health check found."""

    UNREACHABLE = "unreachable"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class EngineHealth(Struct, frozen=True, kw_only=True):
    """Answer of a health check."""

    state: EngineState
    detail: str = ""


class EngineProperties(Struct, frozen=True, kw_only=True):
    """What a ready engine says of itself; empty where it does not say."""

    engine_version: str
    model_name: str
    #: "sha256:…" of the weights when known, else a digest of what identifies them
    model_digest: str = ""
    tokenizer_digest: str = ""
    #: Jinja template of the chat, as the engine reports it
    chat_template: str = ""
    bos_token: str = ""
    eos_token: str = ""
    slots: int = 1
    #: tokens per slot
    ctx: int = 0
    flags: str = ""
    workloads: tuple[str, ...] = ("completion", "chat")
    #: what it can beside that, of :data:`FEATURES`
    features: tuple[str, ...] = ("render", "grammar", "json_schema", "tokenize", "seed", "continue")
    #: may promise ``determinism: strict``
    strict_capable: bool = False
    device: str = "cpu"


#: what engines can have beside workloads: ``render`` a chat as a prompt (else a chat is always sent as ``chat``),
#: ``tools``, ``reasoning`` (the model thinks, and the engine tells that apart), ``images``, ``logprobs``,
#: ``prompt_ids``, ``logit_bias``, ``grammar``, ``json_schema``, ``tokenize``, ``detokenize``, ``seed``, ``continue`` (it goes on from
#: a prefix)
FEATURES = (
    "render",
    "tools",
    "reasoning",
    "images",
    "logprobs",
    "prompt_ids",
    "logit_bias",
    "grammar",
    "json_schema",
    "tokenize",
    "detokenize",
    "seed",
    "continue",
)


class ChatJob(Struct, frozen=True, kw_only=True):
    """A chat that the engine renders and whose answer it parses: tools, reasoning, images."""

    #: as OpenAI writes them
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    #: "" = the engine's default
    tool_choice: str | Mapping[str, Any] = ""
    parallel_tool_calls: bool | None = None
    #: "" = the model's default; "none" = it shall not think
    reasoning_effort: str = ""
    template_kwargs: Mapping[str, Any] = {}


class GenerateJob(Struct, frozen=True, kw_only=True):
    """One attempt of a task, as an engine gets it."""

    task_id: str
    attempt: int
    #: "completion" | "chat" | "embedding" | "rerank"
    workload: str = "completion"
    prompt: str = ""
    #: the prompt as token ids, instead of ``prompt``
    prompt_ids: Sequence[int] = ()
    #: sent to the engine's chat endpoint instead of a prompt
    chat: ChatJob | None = None
    #: texts to embed or to rank
    inputs: Sequence[str] = ()
    #: what ``inputs`` are ranked by
    query: str = ""
    #: length of an embedding; 0 = the model's
    dimensions: int = 0
    #: answers to one prompt. Their entries carry ``choice``; an engine that has no such request makes them one after
    #: another, the k-th with ``seed + k``
    n: int = 1
    #: text already journaled that the engine shall continue from; "" for a fresh or regenerated run
    prefix: str = ""
    slot: int = -1
    seed: int = 0
    #: sampling parameters as numbers, under the names of TaskRequest
    sampling: Mapping[str, float] = {}
    #: 0 = until the engine stops
    max_tokens: int = 0
    stop: tuple[str, ...] = ()
    grammar: str = ""
    json_schema: Mapping[str, Any] | None = None
    cache_prompt: bool = False
    #: put special tokens of the prompt's text to use (a rendered chat), and add BOS where the model wants it
    parse_special: bool = True
    #: entries shall carry log-probabilities
    logprobs: bool = False
    #: beside each token so many of the likeliest
    top_logprobs: int = 0
    #: added to the logits of tokens, by token id
    logit_bias: Mapping[str, float] = {}


class AttemptStart(Struct, frozen=True, kw_only=True):
    """The engine took the job: first sign of life."""

    prompt_tokens: int = 0
    cached_tokens: int = 0


class EmbeddingResult(Struct, frozen=True, kw_only=True):
    """One vector per input."""

    #: little-endian float32, one after another
    vectors: list[bytes]


class RerankResult(Struct, frozen=True, kw_only=True):
    """How well each input fits the query, in the order of the inputs."""

    #: shortest-repr decimals
    scores: list[str]


class AttemptEnd(Struct, frozen=True, kw_only=True):
    """The engine finished the job, by its own word."""

    finish_reason: Literal["stop", "length", "tool_calls"]
    #: of each choice, when there are several
    finish_reasons: tuple[str, ...] = ()
    #: the stop string that ended it, where the engine tells
    stop_sequence: str = ""
    #: of an embedding or a rerank job
    result: EmbeddingResult | RerankResult | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_us: int = 0
    decode_us: int = 0
    #: tokens by the engine's count
    tokens: int = 0


class AttemptFailure(Struct, frozen=True, kw_only=True):
    """The attempt broke off without a proper end."""

    #: "refused" | "cut" | "garbage" | "server-error" | "context" | "invalid" | "unreachable"
    kind: str
    message: str
    #: another attempt may do better
    retriable: bool = True


class AttemptSink(Protocol):
    """Where an engine reports one attempt. Called on the event loop, synchronously, in order; nothing comes
    after ``ended`` or ``failed``, and nothing after the attempt's handle was cancelled."""

    def started(self, start: AttemptStart) -> None: ...

    def entries(self, batch: EntryBatch) -> None: ...

    def ended(self, end: AttemptEnd) -> None: ...

    def failed(self, failure: AttemptFailure) -> None: ...

    def pressure(self) -> bool:
        """True asks the engine's reader to pause until ``resume`` of the handle is called."""
        ...


class AttemptHandle(Protocol):
    """A running attempt."""

    def cancel(self) -> None:
        """Tell the engine to stop, at once; idempotent; the sink hears nothing more."""
        ...

    async def slot_free(self) -> str:
        """Wait until the engine's slot is seen free or its process gone; answers which ("slot-free", "engine-gone")."""
        ...

    def resume(self) -> None:
        """Read on after ``pressure``."""
        ...


@runtime_checkable
class Engine(Protocol):
    """One engine process or server, spoken to by a plugin. All methods run on the event loop."""

    name: str

    async def health(self) -> EngineHealth: ...

    async def properties(self) -> EngineProperties: ...

    def generate(self, job: GenerateJob, sink: AttemptSink) -> AttemptHandle: ...

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text. :raises InvalidParamsError: the engine has no such question."""
        ...

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt that the engine's own template makes of a chat. :raises InvalidParamsError: it cannot."""
        ...

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids. :raises InvalidParamsError: the engine has no such question, or ids that it does not know."""
        ...

    async def forget(self, slot: int) -> bool:
        """Free the KV cache of an idle slot; whether the engine did so."""
        ...

    async def slots_in_use(self) -> int | None:
        """Slots that the engine says are busy; ``None`` where it does not say."""
        ...

    async def metrics(self) -> Mapping[str, float]:
        """The engine's own metrics under their names; empty where it has none."""
        ...

    async def close(self) -> None: ...


class ContainerSpec(Struct, frozen=True, kw_only=True):
    """The image that an engine runs from, and the program that runs it."""

    kind: Literal["podman", "docker"]
    #: path of that program
    runtime: str
    #: with its digest (``name@sha256:…``) where that is known
    image: str


class ProvisionedEngine(Struct, frozen=True, kw_only=True):
    """An engine that is there and can be started (ENG-2); a launcher gets it as ``provisioned``."""

    #: "package" | "external" | "binary" | "source" | "container"; a pool of mode ``package`` may run what
    #: ``engines install`` built
    mode: str
    #: name in the engine catalog; "" = it needs no place there
    name: str = ""
    version: str = ""
    #: "sha256:…" of the archive, "git:…" of the sources, or of the image
    digest: str = ""
    #: how it was built
    flags: tuple[str, ...] = ()
    #: "cpu" | "cuda" | "rocm" | "vulkan" | "metal" | "sycl" | "unknown"
    build: str = "unknown"
    #: what starts it, before its own arguments; empty where the launcher knows (``package``) or the image does
    argv: tuple[str, ...] = ()
    #: directory of its shared libraries; "" = the system's
    library_path: str = ""
    #: long options that its ``--help`` names; empty = not known
    options: tuple[str, ...] = ()
    container: ContainerSpec | None = None
    #: what a person should know, e.g. that an image is not pinned
    warnings: tuple[str, ...] = ()


class LaunchPlan(Struct, frozen=True, kw_only=True):
    """How to start an engine process. No shell is involved."""

    argv: tuple[str, ...]
    #: beside what of the environment of whoever starts it is no secret
    env: Mapping[str, str] = {}
    #: the URL it will answer at
    url: str
    #: text in its log that names a cause, with advice: ``(pattern, cause, advice)``
    log_causes: tuple[tuple[str, str, str], ...] = ()
    #: working directory; "" = that of whoever starts it
    workdir: str = ""
    #: ends what the process started beyond its own group (a container), by force and at once. It is run whenever the
    #: process is gone or was killed; that there is nothing to end is no error
    stop_argv: tuple[str, ...] = ()


EngineFactory = Callable[[Mapping[str, Any]], Engine]
"""Makes an engine client from its pool's configuration (``url`` and the plugin's own keys)."""

LauncherFactory = Callable[[Mapping[str, Any]], LaunchPlan]
"""Plans the start of an engine process from its pool's configuration."""
