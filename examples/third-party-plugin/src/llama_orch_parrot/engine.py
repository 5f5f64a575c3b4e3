"""An engine that repeats its prompt, a word at a time, without end."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llama_orch.plugins import (
    AttemptEnd,
    AttemptFailure,
    AttemptSink,
    AttemptStart,
    EngineHealth,
    EngineProperties,
    EngineState,
    EntryBatch,
    GenerateJob,
    InvalidParamsError,
)

CONTEXT_TOKENS = 2048


def words(text: str) -> list[str]:
    """A text in tokens, of which each is a word with the space before it."""
    return re.findall(r"\s*\S+|\s+", text)


def chat_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """A chat as a parrot hears it."""
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def beyond(job: GenerateJob) -> str:
    """What the job asks for that is beyond a parrot; "" when nothing is."""
    if job.workload not in ("completion", "chat"):
        return "workload"
    for field in ("grammar", "json_schema", "logprobs", "logit_bias", "prompt_ids"):
        if getattr(job, field):
            return field
    chat = job.chat
    if chat is None:
        return ""
    if chat.tools:
        return "tools"
    return "" if all(isinstance(message["content"], str) for message in chat.messages) else "messages"


class Parrot:
    """See the package; takes ``slots`` (2)."""

    name = "parrot"

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.slots = int(config.get("slots") or 2)
        self.model = str(config.get("model") or "echo")
        self.talking: set[Talk] = set()
        self.closed = False

    async def health(self) -> EngineHealth:
        return EngineHealth(state=EngineState.UNREACHABLE if self.closed else EngineState.READY)

    async def properties(self) -> EngineProperties:
        digest = hashlib.sha256(self.model.encode()).hexdigest()
        return EngineProperties(
            engine_version="parrot-1",
            model_name=self.model,
            model_digest=f"meta:{digest}",
            tokenizer_digest=f"meta:{digest}",
            slots=self.slots,
            ctx=CONTEXT_TOKENS,
            # The contract holds it to this: what it says that it has must work, and all else it refuses.
            workloads=("completion", "chat"),
            features=("render", "tokenize", "seed", "continue"),
        )

    def generate(self, job: GenerateJob, sink: AttemptSink) -> Talk:
        talk = Talk(self, job, sink)
        if wanted := beyond(job):
            message = f"{wanted}: a parrot cannot do that"
            asyncio.get_running_loop().call_soon(functools.partial(talk.fail, "invalid", message, retriable=False))
            return talk
        asyncio.get_running_loop().call_soon(talk.begin)
        return talk

    async def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return [int.from_bytes(hashlib.sha256(word.encode()).digest()[:3]) for word in words(text)]

    async def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        return chat_text(messages)

    async def detokenize(self, ids: Sequence[int]) -> str:
        msg = "this engine does not turn token ids into text"
        raise InvalidParamsError(msg, field="tokens")

    async def forget(self, slot: int) -> bool:
        return False

    async def slots_in_use(self) -> int | None:
        return len(self.talking)

    async def metrics(self) -> Mapping[str, float]:
        return {"parrot:talking": len(self.talking)}

    async def close(self) -> None:
        self.closed = True
        for talk in list(self.talking):
            talk.fail("cut", "the parrot flew away")


class Talk:
    """One attempt."""

    def __init__(self, parrot: Parrot, job: GenerateJob, sink: AttemptSink) -> None:
        self.parrot = parrot
        self.job = job
        self.sink: AttemptSink | None = sink
        self.said = 0
        self.choice = 0
        self.reasons: list[str] = []
        self.total = 0
        self.held = ""
        self.paused = False
        parrot.talking.add(self)

    # --- AttemptHandle

    def cancel(self) -> None:
        self.sink = None
        self.parrot.talking.discard(self)

    async def slot_free(self) -> str:
        return "engine-gone" if self.parrot.closed else "slot-free"

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            self.talk()

    # --- talking

    def begin(self) -> None:
        chat = self.job.chat
        self.words = words(self.job.prompt + self.job.prefix if chat is None else chat_text(chat.messages))
        if self.sink is None:
            return
        if len(self.words) >= CONTEXT_TOKENS:
            self.fail("context", f"{len(self.words)} words are too many for {CONTEXT_TOKENS}", retriable=False)
            return
        self.sink.started(AttemptStart(prompt_tokens=len(self.words)))
        self.talk()

    def talk(self) -> None:
        """Say a word, and the next one in the loop's next turn."""
        sink = self.sink
        if sink is None:
            return
        if self.said >= (self.job.max_tokens or CONTEXT_TOKENS):
            self.end("length")
            return
        # The seed says where it begins, so that other seeds say other things.
        word = self.words[(self.said + self.job.seed + self.choice) % len(self.words)]
        self.said += 1
        before = self.held
        self.held += word
        hit = min((at for stop in self.job.stop if (at := self.held.find(stop)) >= 0), default=-1)
        if hit >= 0:
            word = self.held[len(before) : hit]
        sink.entries(EntryBatch([0], [word], choices=[self.choice] if self.choice else None))
        if hit >= 0:
            self.end("stop")
        elif self.sink is not None and sink.pressure():
            self.paused = True
        else:
            asyncio.get_running_loop().call_soon(self.talk)

    def end(self, reason: Literal["stop", "length"]) -> None:
        """An answer is over: the next one, or the end of all."""
        self.reasons.append(reason)
        self.total += self.said
        if len(self.reasons) < self.job.n:
            self.choice, self.said, self.held = self.choice + 1, 0, ""
            asyncio.get_running_loop().call_soon(self.talk)
            return
        sink = self.sink
        self.cancel()
        if sink is not None:
            several = tuple(self.reasons) if self.job.n > 1 else ()
            count = len(self.words)
            sink.ended(AttemptEnd(finish_reason=reason, finish_reasons=several, prompt_tokens=count, tokens=self.total))

    def fail(self, kind: str, message: str, *, retriable: bool = True) -> None:
        sink = self.sink
        self.cancel()
        if sink is not None:
            sink.failed(AttemptFailure(kind=kind, message=message, retriable=retriable))
