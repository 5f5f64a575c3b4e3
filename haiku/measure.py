"""Measure the model on real llama.cpp: `python -m llama_orch.haiku.measure`.

Asks for every topic with 64 seeds at temperature 0.8 and llama.cpp's other defaults, judges each answer and prints the
table. Exits with 1 when fewer than 95 % of the answers are three lines of 5-7-5 and on topic. Needs the `llamacpp`
extra, whose wheel holds llama.cpp's own server; it listens on a free port of the loopback interface.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.request import Request, urlopen

from . import CONTEXT_TOKENS, model_path
from .grammar import BY_ALIAS, SHAPE, TOPICS
from .judge import Verdict, judge

#: What at least must pass, in percent.
BAR_PERCENT: Final = 95
TEMPERATURE: Final = 0.8
#: How the bar's prompts are worded.
PROMPT: Final = "Write a haiku about {topic}"

#: Other wordings, not all of which the model was trained on.
OTHER_PROMPTS: Final = (
    "{topic}",
    "write me a haiku about {topic} please",
    "Can you write a haiku about {topic}?",
    "I'd love a haiku on {topic}!",
    "Compose three lines on the subject of {topic}.",
    "Any chance of a haiku about {topic}, my dear?",
)
#: Turns of a measured chat.
CHAT_TURNS: Final = 10
#: Topics and requests that no training prompt holds.
UNKNOWN_TOPICS: Final = (
    "kangaroos", "helicopters", "tax law", "blockchain", "trombones", "a microwave", "Kubernetes", "sandwiches",
    "an orchestra", "zorblax", "my landlord", "skateboards",
)  # fmt: skip
OTHER_REQUESTS: Final = (
    "What is the capital of Peru?", "Sort this list: 3, 1, 2", "How do airplanes fly?", "What's 17 * 23?",
    "Who invented the telephone?", "Explain recursion", "Can you book a flight for me?", "Say hi to my mum",
    "Hello, nice to meet you", "¿Cómo estás?", '{"a": 1}', "def main():\n    pass",
)  # fmt: skip


#: One message of a chat: its `role` and `content`.
Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said."""

    text: str
    #: `stop` when the model ended by itself, `length` when it was cut.
    finish_reason: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Client:
    """Talks to one llama.cpp server."""

    url: str

    def ask(self, prompt: str, *, seed: int, before: Sequence[Message] = (), max_tokens: int = 64) -> Answer:
        """One chat request at :data:`TEMPERATURE`; every other sampling setting is llama.cpp's own default.

        `before` holds the messages that were said so far, a system message first if there is one.
        """
        messages = [*before, {"role": "user", "content": prompt}]
        body = {"messages": messages, "seed": seed, "temperature": TEMPERATURE, "max_tokens": max_tokens}
        said = self._post("/v1/chat/completions", body)
        choice = said["choices"][0]
        return Answer(choice["message"]["content"], choice["finish_reason"], said["usage"]["completion_tokens"])

    def complete(self, prompt: str, *, seed: int, max_tokens: int = 64) -> Answer:
        """The same without a chat template."""
        body = {"prompt": prompt, "seed": seed, "temperature": TEMPERATURE, "max_tokens": max_tokens}
        said = self._post("/v1/completions", body)
        choice = said["choices"][0]
        return Answer(choice["text"], choice["finish_reason"], said["usage"]["completion_tokens"])

    def _post(self, path: str, body: object) -> dict:  # type: ignore[type-arg]
        request = Request(  # noqa: S310 - the server that this process started
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urlopen(request, timeout=60) as response:  # noqa: S310
            return json.load(response)  # type: ignore[no-any-return]


@contextmanager
def real_llama(model: Path) -> Iterator[Client]:
    """A llama.cpp server with `model` loaded: one slot, one thread, so that a seed gives the same text again."""
    import xllamacpp  # an optional extra, needed here alone

    params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue] - it ships no types
    params.model.path = str(model)
    params.n_ctx, params.n_parallel = CONTEXT_TOKENS, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.verbosity = 0
    params.fit_params = False
    server = xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield Client(server.listening_address)
    finally:
        del server


@dataclass(slots=True)
class Tally:
    """Answers to one kind of prompt, counted."""

    title: str
    total: int = 0
    #: Ended by themselves after three lines.
    three_lines: int = 0
    well_formed: int = 0
    #: `None` where no topic was asked for.
    on_topic: int | None = None
    passed: int = 0
    texts: set[str] = field(default_factory=set)
    failures: list[tuple[str, Answer, Verdict]] = field(default_factory=list)
    failed_topics: Counter[str] = field(default_factory=Counter)

    def add(self, prompt: str, answer: Answer, topic: str | None) -> None:
        """Judge one more answer; one that was cut off fails whatever it says."""
        verdict = judge(answer.text, topic)
        ended = answer.finish_reason == "stop"
        self.total += 1
        self.three_lines += ended and len(verdict.lines) == len(SHAPE)
        self.well_formed += ended and verdict.well_formed
        if verdict.on_topic is not None:
            self.on_topic = (self.on_topic or 0) + verdict.on_topic
        self.texts.add(answer.text)
        if ended and verdict.passed:
            self.passed += 1
        else:
            self.failures.append((prompt, answer, verdict))
            self.failed_topics[topic or ""] += 1

    @classmethod
    def joined(cls, tallies: Sequence[Tally]) -> Tally:
        """All answers of tallies of one kind (each with topics, or each without)."""
        made = cls(tallies[0].title)
        for each in tallies:
            made.total += each.total
            made.three_lines += each.three_lines
            made.well_formed += each.well_formed
            if each.on_topic is not None:
                made.on_topic = (made.on_topic or 0) + each.on_topic
            made.passed += each.passed
            made.texts |= each.texts
            made.failures += each.failures
            made.failed_topics += each.failed_topics
        return made

    @property
    def passed_percent(self) -> float:
        """Share of answers that passed."""
        return 100 * self.passed / self.total if self.total else 0.0

    def row(self) -> str:
        """One row of the table."""
        shares = [self.three_lines, self.well_formed, self.on_topic, self.passed, len(self.texts)]
        cells = ["" if n is None else f"{100 * n / self.total:.1f} %" for n in shares]
        return f"| {self.title} | {self.total} | " + " | ".join(cells) + " |"


HEADER: Final = (
    "| prompts | answers | three lines | 5-7-5 | on topic | all of it | distinct |\n|---|---|---|---|---|---|---|"
)


def ask_topics(client: Client, title: str, prompt: str, names: Iterable[str], seeds: Sequence[int]) -> Tally:
    """Every name in `names` put into `prompt`, with every seed."""
    tally = Tally(title)
    for name in names:
        asked = prompt.format(topic=name)
        for seed in seeds:
            tally.add(asked, client.ask(asked, seed=seed), name)
    return tally


def ask_verses(client: Client, title: str, prompts: Iterable[str], seeds: Sequence[int]) -> Tally:
    """Prompts that no topic belongs to: the answer need only be in verse."""
    tally = Tally(title)
    for prompt in prompts:
        for seed in seeds:
            tally.add(prompt, client.ask(prompt, seed=seed), None)
    return tally


def ask_bare(client: Client, names: Iterable[str], seeds: Sequence[int]) -> Tally:
    """The bar's prompt as a completion, without the chat template."""
    tally = Tally("bare completion")
    for name in names:
        prompt = PROMPT.format(topic=name)
        for seed in seeds:
            tally.add(prompt, client.complete(prompt, seed=seed), name)
    return tally


def chat(client: Client, names: Sequence[str], *, seed: int) -> Tally:
    """One chat that asks for each name in turn, so that each answer has all earlier ones before it."""
    tally = Tally(f"turns 1 to {len(names)} of a chat")
    said: list[Message] = [{"role": "system", "content": "You are a helpful assistant."}]
    for name in names:
        prompt = PROMPT.format(topic=name)
        answer = client.ask(prompt, seed=seed, before=said)
        tally.add(prompt, answer, name)
        said += [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer.text}]
    return tally


def measure_rest(client: Client) -> Iterator[Tally]:
    """What the bar does not ask for: other names and wordings, what the model does not know, no chat template."""
    names = [topic.name for topic in TOPICS]
    yield ask_topics(client, "other names of the topics", PROMPT, (a for a in BY_ALIAS if a not in names), range(4))
    for wording in OTHER_PROMPTS:
        yield ask_topics(client, wording.replace("{topic}", "…"), wording, names, range(4))
    yield ask_bare(client, names, range(4))
    chats = [
        chat(client, names[start : start + CHAT_TURNS], seed=start) for start in range(0, len(names) - CHAT_TURNS, 3)
    ]
    yield Tally.joined(chats)
    unknown = [PROMPT.format(topic=name) for name in UNKNOWN_TOPICS]
    yield ask_verses(client, "topics that it does not know", unknown, range(16))
    yield ask_verses(client, "other requests", OTHER_REQUESTS, range(16))


def show_failures(tally: Tally, limit: int) -> None:
    """Print the topics that fail most and the first failures."""
    if not tally.failures:
        return
    worst = ", ".join(f"{name} {n}" for name, n in tally.failed_topics.most_common(8))
    print(f"\nfailures by topic: {worst}")
    for prompt, answer, verdict in tally.failures[:limit]:
        print(f"\n[{prompt}] {verdict.reason or answer.finish_reason}\n{answer.text}")


def main() -> None:
    """Measure as the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m llama_orch.haiku.measure", description="Measure the haiku model on real llama.cpp."
    )
    parser.add_argument("--model", type=Path, help="GGUF file to measure (default: the one that ships)")
    parser.add_argument("--seeds", type=int, default=64, help="seeds for each topic (default 64)")
    parser.add_argument("--bar-only", action="store_true", help="leave out the prompts that the bar does not ask for")
    parser.add_argument("--failures", type=int, default=5, help="how many failed answers to print (default 5)")
    given = parser.parse_args()
    model: Path = given.model or model_path()

    print(f"{model.name}: {model.stat().st_size} bytes, {len(TOPICS)} topics, temperature {TEMPERATURE}\n")
    print(HEADER)
    with real_llama(model) as client:
        names = [topic.name for topic in TOPICS]
        bar = ask_topics(client, "**the bar**", PROMPT, names, range(given.seeds))
        print(bar.row(), flush=True)
        if not given.bar_only:
            for tally in measure_rest(client):
                print(tally.row(), flush=True)
    show_failures(bar, given.failures)
    if bar.passed_percent < BAR_PERCENT:
        sys.exit(f"{bar.passed_percent:.1f} % of the answers pass; the bar is {BAR_PERCENT} %")


if __name__ == "__main__":
    main()
