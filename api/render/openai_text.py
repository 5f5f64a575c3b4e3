"""Tasks' streams as OpenAI's ``text_completion`` objects, of which one may tell of several prompts.

The choices of the n-th prompt follow those of the prompts before it. A chunk is a function of one entry and of the text
before it, so any cut of the entries into segments gives the same chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from ...core.errors import OrchError
from ...core.events.task import TaskEnded
from ...core.journal.live import Segment
from ...core.logprobs import unpack_logprobs
from ...core.services.outcomes import Choice
from ...core.services.streams import Ended, Heartbeat, Queued, Started
from ...core.services.tasks import TaskInfo, Usage
from ...core.types import TEXT
from ..problems import openai_body
from .openai_parts import DONE, finish_reason, reason_of, text_logprobs, usage_of_tasks
from .sse import HEARTBEAT

_encode = msgspec.json.Encoder().encode

#: under which a segment keeps these bytes
KIND: Final = "openai.text.1"


def completion_id(task_id: str) -> str:
    """The id of a completion, by its first prompt's task."""
    return f"cmpl-{task_id}"


class TextRenderer:
    """Renders the chunks of one or several prompts.

    :param created: Unix time of the first task's admission, seconds.
    :param echoes: what each prompt's answers begin with; "" = nothing.
    :param n: answers to each prompt.
    :param logprobs: whether chunks tell log-probabilities.
    """

    def __init__(
        self,
        *,
        task_id: str,
        model: str,
        created: int,
        include_usage: bool,
        correlation: str,
        failure: Callable[[TaskEnded], OrchError],
        echoes: Sequence[str],
        n: int,
        logprobs: bool,
    ) -> None:
        self._head = {"id": completion_id(task_id), "object": "text_completion", "created": created, "model": model}
        self._usage = include_usage
        self._null_usage: dict[str, Any] = {"usage": None} if include_usage else {}
        self._correlation = correlation
        self._failure = failure
        self._echoes = echoes
        self._n = n
        self._logprobs = logprobs
        #: prompts whose tasks have not ended
        self._open = set(range(len(echoes)))
        self._failed = False
        self._usages: list[Usage] = []
        #: characters that each choice has said, echo and all
        self._said = [len(echo) for echo in echoes for _ in range(n)]
        self._before = b"data: " + _encode(self._head)[:-1] + b',"choices":[{"text":'
        tail = b',"logprobs":null,"finish_reason":null}]' + (b',"usage":null}' if include_usage else b"}") + b"\n\n"
        bases = range(0, n * len(echoes), n)
        #: by prompt: what stands behind a text of its first answer
        self._after = [b',"index":%d%b' % (base, tail) for base in bases]
        #: by prompt: chunks are cached with the segment only for readers that would write the same
        self._kind = [f"{KIND}:{include_usage}:{created}:{model}:{task_id}:{base}" for base in bases]

    def abandoned(self) -> set[int]:
        """The prompts whose tasks go on although the stream ended, since another one failed."""
        return self._open if self._failed else set()

    def _chunk(
        self, choice: int, text: str, reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> bytes:
        one = {"text": text, "index": choice, "logprobs": logprobs, "finish_reason": reason}
        return b"data: %b\n\n" % _encode({**self._head, "choices": [one], **self._null_usage})

    def _segment(self, prompt: int, segment: Segment) -> bytes:
        batch = segment.batch
        if batch.channels is None and batch.choices is None and batch.logprobs is None:
            kind = self._kind[prompt]
            known = segment.rendered.get(kind)
            if known is None:
                before, after = self._before, self._after[prompt]
                known = b"".join([before + _encode(text) + after for text in batch.texts if text])
                segment.rendered[kind] = known
            return known
        base = prompt * self._n
        out: list[bytes] = []
        for entry in batch.entries():
            if entry.choice >= self._n or entry.channel != TEXT:
                continue
            choice, told = base + entry.choice, None
            if self._logprobs and entry.logprob:
                tokens = unpack_logprobs(entry.text, entry.logprob)
                told = text_logprobs(tokens, self._said[choice])
                self._said[choice] += sum(len(token.token) for token in tokens)
            if entry.text or told is not None:
                out.append(self._chunk(choice, entry.text, None, told))
        return b"".join(out)

    def render(self, items: Sequence[Any]) -> tuple[bytes, bool]:
        """Bytes for items of the one prompt's task that became ready together, and whether the stream ends with them."""
        if len(items) == 1 and type(items[0]) is Segment:
            return self._segment(0, items[0]), False
        return self.render_parts([(0, item) for item in items])

    def render_parts(self, parts: Sequence[tuple[int, Any]]) -> tuple[bytes, bool]:
        """The same for items of several prompts' tasks.

        :param parts: each with the number of its prompt.
        """
        out: list[bytes] = []
        for prompt, item in parts:
            kind = type(item)
            if kind is Segment:
                out.append(self._segment(prompt, item))
            elif kind is Started and self._echoes[prompt]:
                base = prompt * self._n
                out += [self._chunk(base + n, self._echoes[prompt]) for n in range(self._n)]
            elif kind is Ended:
                if self._end(prompt, item.payload, out):
                    return b"".join(out), True
            elif kind is Heartbeat:
                out.append(HEARTBEAT)
            elif kind is Queued:
                out.append(b": queued position=%d predicted_start_ms=%d\n\n" % (item.position, item.predicted_start_ms))
        return b"".join(out), False

    def _end(self, prompt: int, event: TaskEnded, out: list[bytes]) -> bool:
        """Whether the stream ends with this task's end."""
        self._open.discard(prompt)
        if event.outcome == "failed":
            self._failed = True
            out.append(self.broken(self._failure(event)))
            return True
        out += [self._chunk(prompt * self._n + n, "", reason_of(event, n)) for n in range(self._n)]
        self._usages.append(Usage(event.prompt_tokens, event.cached_tokens, event.tokens_out))
        if self._open:
            return False
        if self._usage:
            usage = usage_of_tasks(self._usages)
            out.append(b"data: %b\n\n" % _encode({**self._head, "choices": [], "usage": usage}))
        out.append(DONE)
        return True

    def broken(self, error: OrchError) -> bytes:
        """An error in the stream, which OpenAI's clients raise."""
        return b"data: %b\n\n" % _encode(openai_body(error, self._correlation))


def text_completion(
    infos: Sequence[TaskInfo], *, model: str, created: int, echoes: Sequence[str], logprobs: bool
) -> dict[str, Any]:
    """The ``text_completion`` object of ended tasks, one per prompt."""
    choices: list[dict[str, Any]] = []
    for info, echo in zip(infos, echoes, strict=True):
        for choice in info.choices or [Choice(text=info.text or "", finish_reason=info.finish_reason)]:
            choices.append(
                {
                    "text": echo + choice.text,
                    "index": len(choices),
                    "logprobs": text_logprobs(choice.logprobs, len(echo)) if logprobs else None,
                    "finish_reason": finish_reason(choice.finish_reason or info.finish_reason),
                }
            )
    return {
        "id": completion_id(infos[0].task_id),
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage_of_tasks([info.usage for info in infos]),
    }
