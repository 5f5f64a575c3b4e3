"""The mock engine's inside: slots, time and faults. Who wants to hear it, in process or over HTTP, is an outlet."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from .. import ChatJob
from ._mock_chat import Plan, RefusedError, plan
from ._mock_script import KnobError, Knobs, Said, Speech, knobs_of
from ._mock_words import tokenize

#: frames that an unpaced run says in one turn of the loop
FRAMES_PER_TURN: Final = 64
DEFAULT_SLOTS: Final = 4
#: a bias as far below zero rules a token out
BAN: Final = 50.0
DEFAULT_CTX: Final = 4096


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the mock."""

    prompt: str
    slot: int = -1
    seed: int = 0
    max_tokens: int = 0
    stop: Sequence[str] = ()
    cache_prompt: bool = False
    #: the prompt's tokens, where it came as such
    prompt_ids: Sequence[int] = ()
    #: what the prompt was made of, where it is a chat
    chat: ChatJob | None = None
    json_schema: Mapping[str, Any] | None = None
    #: ids that are not said
    banned: Collection[int] = ()
    #: answers, one after another
    n: int = 1
    #: what to embed or to rank: nothing is said then
    inputs: Sequence[str] = ()

    def tokens(self) -> list[int]:
        """The prompt in tokens; of inputs the tokens of all."""
        if self.inputs:
            return [token for text in self.inputs for token in tokenize(f"{self.prompt}{text}", add_special=True)]
        if self.prompt_ids:
            return [*self.prompt_ids, *tokenize(self.prompt, add_special=False)]
        return tokenize(self.prompt, add_special=True)


class Outlet(Protocol):
    """Hears one run, on the event loop, in order."""

    def started(self, prompt_tokens: int, cached_tokens: int) -> None: ...

    def said(self, frames: list[Said]) -> None: ...

    def ended(self, run: Run) -> None:
        """The last answer is complete; ``run.ends`` says how each ended."""

    def broke(self, kind: str, message: str) -> None:
        """A fault struck, or the request was refused; ``kind`` is a fault's name, ``gone``, ``context`` or ``invalid``."""

    def blocked(self) -> bool:
        """Whether to wait for :meth:`Run.resume`."""
        ...


class Machine:
    """Slots, and the queue before them.

    Args:
        slots: runs at once.
        ctx: tokens per slot.
        script: default knobs.
    """

    def __init__(
        self, *, slots: int = DEFAULT_SLOTS, ctx: int = DEFAULT_CTX, script: Mapping[str, Any] | None = None
    ) -> None:
        self.ctx = ctx
        self.script = dict(script or {})
        knobs_of("", self.script)  # refuse bad defaults at once
        #: the run in each slot
        self.slots: list[Run | None] = [None] * slots
        self.dead = False
        self.requests = 0
        self.tokens_said = 0
        self._waiting: deque[Run] = deque()
        self._cached: list[list[int]] = [[] for _ in range(slots)]
        self._struck: dict[str, int] = {}

    def submit(self, request: Request, outlet: Outlet) -> Run:
        """Take a request; the outlet hears of it later, never from within this call."""
        self.requests += 1
        run = Run(self, request, outlet)
        asyncio.get_running_loop().call_soon(run.open)
        return run

    def strikes(self, knobs: Knobs, prompt: str) -> bool:
        """Whether the fault of this prompt strikes once more."""
        if not knobs.fault:
            return False
        count = self._struck[prompt] = self._struck.get(prompt, 0) + 1
        return not knobs.times or count <= knobs.times

    def queue(self, run: Run) -> None:
        """A run wants a slot."""
        self._waiting.append(run)
        self.admit()

    def leave_queue(self, run: Run) -> None:
        """It does not any more."""
        if run in self._waiting:
            self._waiting.remove(run)

    def admit(self) -> None:
        """Give free slots to those who wait, in order."""
        for run in list(self._waiting):
            wanted = run.request.slot
            free = [n for n, taken in enumerate(self.slots) if taken is None and wanted in (n, -1)]
            if not free and wanted >= len(self.slots):
                free = [n for n, taken in enumerate(self.slots) if taken is None]
            if free:
                self._waiting.remove(run)
                self.slots[free[0]] = run
                run.begin(free[0])

    def forget(self, slot: int) -> bool:
        """An idle slot holds no prompt any more."""
        if not 0 <= slot < len(self.slots) or self.slots[slot] is not None:
            return False
        self._cached[slot] = []
        return True

    def vacate(self, slot: int) -> None:
        """A slot is free again."""
        self.slots[slot] = None
        self.admit()

    def cached(self, slot: int, tokens: list[int], *, use: bool) -> int:
        """Tokens of a prompt that the slot still holds; it then holds this prompt."""
        same = 0
        if use:
            for old, new in zip(self._cached[slot], tokens[:-1], strict=False):
                if old != new:
                    break
                same += 1
        self._cached[slot] = tokens
        return same

    def die(self) -> None:
        """The process is gone: every run is cut, and nobody answers any more."""
        self.dead = True
        for run in [*self.slots, *self._waiting]:
            if run is not None:
                run.cut()


class Run:
    """One request on its way through the mock."""

    def __init__(self, machine: Machine, request: Request, outlet: Outlet) -> None:
        self._machine = machine
        self._outlet = outlet
        self._timer: asyncio.Handle | None = None
        self._freed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._began_s = 0.0
        self._rate_from_s = 0.0
        self._fault = ""
        self._paused = False
        self._over = False
        self.request = request
        self.slot = -1
        self.knobs = Knobs()
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.speech: Speech | None = None
        #: which answer is being said
        self.choice = 0
        #: how those before it ended
        self.ends: list[Speech] = []

    @property
    def decode_ms(self) -> float:
        """Time since the first token was due."""
        return (asyncio.get_running_loop().time() - self._began_s) * 1000

    def open(self) -> None:
        """The request arrived."""
        if self._over:
            return
        if self._machine.dead:
            self._break("gone", "the engine is gone")
            return
        try:
            prompt = "".join((self.request.prompt, *self.request.inputs))
            self.knobs = knobs_of(prompt, self._machine.script)
        except KnobError as error:
            self._break("invalid", str(error))
            return
        if self._machine.strikes(self.knobs, prompt):
            self._fault = self.knobs.fault_name
        if self._fault in ("refuse", "500"):
            self._break(self._fault, "the script says so")
            return
        request = self.request
        self.prompt_tokens = len(request.tokens())
        longest = max(
            (len(tokenize(f"{request.prompt}{text}", add_special=True)) for text in request.inputs), default=0
        )
        longest = longest or self.prompt_tokens
        if longest >= self._machine.ctx:
            self._break(
                "context",
                f"request ({longest} tokens) exceeds the available context size ({self._machine.ctx} tokens)",
            )
            return
        try:
            self._plan(0)
        except RefusedError as error:
            self._break("invalid", str(error))
            return
        self._machine.queue(self)

    def begin(self, slot: int) -> None:
        """A slot is ours."""
        self.slot = slot
        request = self.request
        if not request.inputs:
            self.cached_tokens = self._machine.cached(slot, request.tokens(), use=request.cache_prompt)
            self.speech = self._speech()
        self._after(self.knobs.prefill_ms / 1000, self._take_off)

    def cancel(self) -> None:
        """Whoever asked left."""
        if not self._over:
            self._finish(self.knobs.stall_ms / 1000)

    def cut(self) -> None:
        """The machine died under it."""
        if not self._over:
            self._over = True
            self._stop_timer()
            self._outlet.broke("die", "the engine is gone")
        self._set_free("engine-gone")

    def resume(self) -> None:
        """The outlet can hear again."""
        if self._paused and not self._over:
            self._paused = False
            self._after(0, self._turn)

    async def slot_free(self) -> str:
        """Wait until the slot is free or the machine dead."""
        return await asyncio.shield(self._freed)

    # --- inside

    def _plan(self, choice: int) -> Plan:
        request, knobs = self.request, self.knobs
        seed = request.seed + choice
        chat, schema = request.chat, request.json_schema
        return plan(chat=chat, schema=schema, calls=knobs.calls, thoughts=knobs.thoughts, seed=seed)

    def _speech(self) -> Speech:
        request = self.request
        return Speech(
            self.knobs if self._fault else msgspec.structs.replace(self.knobs, fault=""),
            request.prompt,
            seed=request.seed + self.choice,
            limit=request.max_tokens,
            room=self._machine.ctx - self.prompt_tokens,
            stop=request.stop,
            plan=self._plan(self.choice),
            banned=request.banned,
        )

    def _take_off(self) -> None:
        if self.request.inputs:
            if self._fault not in ("", "endless", "repeat"):
                self._strike()
                return
            self._began_s = asyncio.get_running_loop().time()
            self._outlet.ended(self)
            self._finish(0)
            return
        if self._fault == "silent" and self.knobs.fault_after == 0:
            return
        self._outlet.started(self.prompt_tokens, self.cached_tokens)
        self._began_s = self._rate_from_s = asyncio.get_running_loop().time()
        if not self._over:
            self._turn()

    def _turn(self) -> None:
        """Say what is due."""
        assert self.speech is not None
        speech, rate = self.speech, self.knobs.rate
        due = FRAMES_PER_TURN
        if rate:
            elapsed = asyncio.get_running_loop().time() - self._rate_from_s
            due = min(int(elapsed * rate) + 1 - speech.counted, FRAMES_PER_TURN)
        frames: list[Said] = []
        strikes = self._fault not in ("", "endless", "repeat")
        at = self.knobs.fault_after
        over = False
        while len(frames) < due:
            if strikes and self._said_before + speech.counted >= at:
                break
            frame = speech.next()
            if frame is None:
                over = True
                break
            frames.append(frame)
        if frames:
            self._machine.tokens_said += sum(f.tokens for f in frames)
            self._outlet.said(frames)
        if self._over:
            return
        if strikes and (self._said_before + speech.counted >= at or over):
            self._strike()
        elif over:
            self._answered(speech)
        elif self._outlet.blocked():
            self._paused = True
        else:
            wait = (
                0.0
                if not rate
                else max(0.0, self._rate_from_s + speech.counted / rate - asyncio.get_running_loop().time())
            )
            self._after(wait, self._turn)

    def _answered(self, speech: Speech) -> None:
        """An answer is complete: the next one, or the end."""
        self.ends.append(speech)
        if len(self.ends) < self.request.n:
            self.choice += 1
            self.speech = self._speech()
            self._rate_from_s = asyncio.get_running_loop().time()
            self._after(0, self._turn)
            return
        self._outlet.ended(self)
        self._finish(0)

    @property
    def _said_before(self) -> int:
        return sum(speech.counted for speech in self.ends)

    def _strike(self) -> None:
        if self._fault == "silent":
            return
        if self._fault == "die":
            self._machine.die()
        else:
            self._break(self._fault, "the script says so")

    def _break(self, kind: str, message: str) -> None:
        self._finish(0)
        self._outlet.broke(kind, message)

    def _finish(self, stall_s: float) -> None:
        self._over = True
        self._stop_timer()
        self._machine.leave_queue(self)
        if self.slot < 0 or self._machine.dead:
            self._set_free("engine-gone" if self._machine.dead else "slot-free")
        elif stall_s:
            asyncio.get_running_loop().call_later(stall_s, self._vacate)
        else:
            self._vacate()

    def _vacate(self) -> None:
        self._machine.vacate(self.slot)
        self._set_free("engine-gone" if self._machine.dead else "slot-free")

    def _set_free(self, answer: str) -> None:
        if not self._freed.done():
            self._freed.set_result(answer)

    def _after(self, seconds: float, call: Any) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, call) if seconds > 0 else loop.call_soon(call)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def banned(biases: Iterable[tuple[str, float]]) -> frozenset[int]:
    """Ids of the tokens that a bias rules out."""
    return frozenset(int(token) for token, bias in biases if bias <= -BAN and token.isdecimal())
