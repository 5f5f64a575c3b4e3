"""The SDK and the command line against what the pacts say of a server; the pacts that come of it are those in this folder.

After a change: `PACT_WRITE=1 python -m pytest tests/pact` writes them anew, and the diff says what clients now rely on.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from pact import Pact
from pact.interaction import HttpInteraction

from llama_orch.cli.main import main
from llama_orch.cli.shell import Shell
from llama_orch.client import (
    ApiError,
    BackpressureError,
    BudgetCap,
    Client,
    LlamaOrchError,
    ResumeLostError,
    TaskRequest,
)
from llama_orch.client.target import Server, Target

from .interactions import (
    BY_DESCRIPTION,
    ENDED,
    FAILED,
    MODEL,
    NARROW,
    PROMPT,
    RUNNING,
    SESSION,
    TOKEN,
    UNKNOWN,
    Interaction,
)

HERE = Path(__file__).parent
PROVIDER = "llama-orch"


def refused(ask: Callable[[Client], object], kind: type[LlamaOrchError] = ApiError) -> Callable[[Client], Any]:
    """What is raised."""

    def asking(client: Client) -> Any:
        with pytest.raises(kind) as caught:
            ask(client)
        return caught.value.code

    return asking


def submit(**fields: Any) -> Callable[[Client], str]:
    return lambda client: client.submit(TaskRequest(**fields)).task_id


#: what the SDK does, under the interaction that it takes, and what it makes of the answer
SDK: dict[str, tuple[Callable[[Client], Any], Any]] = {
    "submit a prompt": (submit(model_ref=MODEL, prompt=PROMPT), ENDED),
    "submit for a model that is not served": (refused(submit(model_ref="nothing", prompt="x")), "MODEL_NOT_FOUND"),
    "submit with a field that is wrong": (refused(submit(model_ref=MODEL, prompt="x", max_tokens=0)), "INVALID_PARAMS"),
    "submit with the Idempotency-Key of another task": (
        refused(lambda c: c.submit(TaskRequest(model_ref=MODEL, prompt="another"), idempotency_key="taken")), "CONFLICT"),
    "submit to a full queue": (refused(submit(model_ref=NARROW, prompt="x"), BackpressureError), "ADMISSION_REJECT"),
    "ask with a key that is not known": (refused(lambda c: c.pools()), "BAD_TOKEN"),
    "get a task that has ended": (lambda c: c.get(ENDED).usage.completion_tokens, 3),
    "wait for a task that has ended": (lambda c: c.wait(ENDED).state, "completed"),
    "get a task that failed": (lambda c: getattr(c.get(FAILED).error, "code", ""), "WORKER_RESET"),
    "get a task that is not there": (refused(lambda c: c.get(UNKNOWN)), "NOT_FOUND"),
    "list tasks": (lambda c: [task.task_id for task in c.tasks(limit=20).tasks], [ENDED]),
    "follow a task from its start": (lambda c: "".join(c.task(ENDED).text()), " bara bara bara"),
    "follow a task from its last frame but one": (lambda c: [e.frame_id for e in c.stream(ENDED, after="1.3")], ["1.4"]),
    "follow a task from a frame that the server does not hold": (
        refused(lambda c: list(c.stream(ENDED, after="1.99")), ResumeLostError), "RESUME_LOST"),
    "cancel a task that runs": (lambda c: c.cancel(RUNNING), None),
    "cancel a task that is not there": (refused(lambda c: c.cancel(UNKNOWN)), "NOT_FOUND"),
    "ask why a task ran where it did": (lambda c: c.decision(ENDED)["selected_pool_id"], MODEL),
    "look at the queue": (lambda c: c.queue().groups[0].entries[0].position, 0),
    "list pools": (lambda c: [pool.pool_id for pool in c.pools()], [MODEL]),
    "ask how a pool is": (lambda c: c.pool_health(MODEL)["ready"], True),
    "list models": (lambda c: [model.id for model in c.models()], [MODEL]),
    "ask what the server can do": (lambda c: c.capabilities()["engines"][0]["engine"], "mock"),
    "list sessions": (lambda c: [session.turns for session in c.sessions()], [1]),
    "get a session": (lambda c: c.session(SESSION).turn_limit, 8),
    "end a session that is gone": (lambda c: c.end_session(UNKNOWN), None),
    "set a session's budget": (lambda c: c.set_budget("session", SESSION, BudgetCap(window="day", tokens=500)).caps.tokens, 500),
    "list budgets": (lambda c: [budget.subject for budget in c.budgets()], [SESSION]),
    "remove a session's budgets": (lambda c: c.remove_budget("session", SESSION), None),
}  # fmt: skip

#: commands, the interactions that each takes, and something that it prints
COMMANDS: list[tuple[list[str], list[str], str]] = [
    (["status"], ["list pools", "ask whether it is ready", "look at the queue"], "(ready)"),
    (["submit", "--raw", "-m", MODEL, PROMPT], ["submit a prompt without a key of its own"], ENDED),
    (["submit", "--raw", PROMPT], ["list models", "submit a prompt without a key of its own"], ENDED),
    (["stream", ENDED], ["follow a task with its place in the queue"], " bara bara bara\n"),
    (["cancel", RUNNING], ["cancel a task that runs"], ""),
    (["tasks"], ["list tasks"], ENDED),
    (["tasks", ENDED], ["get a task that has ended"], "state:"),
    (["queue"], ["look at the queue"], NARROW),
    (["capabilities"], ["ask what the server can do"], "mock"),
    (["explain", ENDED], ["ask why a task ran where it did"], MODEL),
]


def expect(pact: Pact, wanted: Interaction) -> None:
    """Put an interaction into a pact."""
    told = cast("HttpInteraction", pact.upon_receiving(wanted.description))
    if wanted.state:
        told.given(wanted.state)
    told.with_request(wanted.method, wanted.path)
    told.with_query_parameters(dict(wanted.query))
    for name, value in {"Authorization": f"Bearer {wanted.token}", **wanted.headers}.items():
        told.with_header(name, value, "Request")
    if wanted.body is not None:
        told.with_body(wanted.body, "application/json", "Request")
    told.will_respond_with(wanted.status)
    for name, value in wanted.answer_headers.items():
        told.with_header(name, value, "Response")
    if wanted.stream:
        told.with_body(wanted.stream, "text/event-stream", "Response")
        rules = {"body": {"$": {"matchers": [{"match": "regex", "regex": wanted.stream_pattern}]}}}
        told.with_matching_rules(rules, "Response")
    elif wanted.answer is not None:
        told.with_body(wanted.answer, "application/json", "Response")


def new_pact(consumer: str) -> Pact:
    return Pact(consumer, PROVIDER).with_specification("V4")


def sdk_client(url: str, wanted: Interaction) -> Client:
    server = Server(url, wanted.token)
    return Client(
        target=Target(server, lambda: server),
        retries=0,
        stream_retries=0,
        new_key=lambda: wanted.headers["Idempotency-Key"],
    )


def run_command(url: str, arguments: list[str]) -> str:
    shell = Shell(io.StringIO(), io.StringIO(), io.StringIO(), {"LLORCH_URL": url, "LLORCH_API_TOKEN": TOKEN})
    status = main(arguments, shell)
    assert status == 0, cast("io.StringIO", shell.stderr).getvalue()
    return cast("io.StringIO", shell.stdout).getvalue()


def settled(path: Path) -> dict[str, Any]:
    """A pact without the versions of the library that wrote it, in an order of its own."""
    told = json.loads(path.read_text("utf-8"))
    told["metadata"] = {"pactSpecification": told["metadata"]["pactSpecification"]}
    told["interactions"].sort(key=lambda interaction: interaction["description"])
    return cast("dict[str, Any]", told)


def hold(consumer: str, written: Path) -> None:
    """The pact that was written is the one of this folder."""
    kept = HERE / f"{consumer}.json"
    told = settled(written / f"{consumer}-{PROVIDER}.json")
    if os.environ.get("PACT_WRITE"):
        kept.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")
    assert told == json.loads(kept.read_text("utf-8"))


def test_the_sdk_asks_what_its_pact_says_and_understands_the_answers(tmp_path: Path) -> None:
    for description, (ask, understood) in SDK.items():
        wanted = BY_DESCRIPTION[description]
        pact = new_pact("llama-orch-client")
        expect(pact, wanted)
        with pact.serve("127.0.0.1") as served, sdk_client(str(served.url).rstrip("/"), wanted) as client:
            assert ask(client) == understood, description
        pact.write_file(tmp_path)
    hold("llama-orch-client", tmp_path)


def test_the_command_line_asks_what_its_pact_says_and_shows_the_answers(tmp_path: Path) -> None:
    for arguments, descriptions, shown in COMMANDS:
        pact = new_pact("llama-orch-cli")
        for description in descriptions:
            expect(pact, BY_DESCRIPTION[description])
        with pact.serve("127.0.0.1") as served:
            assert shown in run_command(str(served.url).rstrip("/"), arguments), arguments
        pact.write_file(tmp_path)
    hold("llama-orch-cli", tmp_path)


def test_no_interaction_is_written_down_that_nobody_uses() -> None:
    used = set(SDK) | {description for _, descriptions, _ in COMMANDS for description in descriptions}
    assert used == set(BY_DESCRIPTION)
