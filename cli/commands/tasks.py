"""Tasks: submit, follow, cancel, look at them and at the queue."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from .. import exits
from ..asking import LARGEST_INPUT_BYTES, add_request_arguments, messages_of, model_of, parameters, prompt_of
from ..command import command
from ..connect import client_of
from ..exits import UsageError
from ..following import Follower
from ..shell import Shell


def _submit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", help="what you want; - or nothing reads standard input")
    parser.add_argument(
        "--raw", action="store_true", help="send the prompt as it is, without the model's chat template"
    )
    parser.add_argument(
        "--file", metavar="FILE", help="a whole task request as JSON (- = standard input); arguments go on top"
    )
    parser.add_argument("--key", metavar="TEXT", help="Idempotency-Key: the same key and request is the same task")
    parser.add_argument("--wait", action="store_true", help="wait for the end and print the answer")
    add_request_arguments(parser)


@command("submit", "put a task into the queue and print its id", arguments=_submit_arguments, needs="server")
def submit(options: argparse.Namespace, shell: Shell) -> int:
    """Prints the task's id, its position in the queue and when it is expected to start. `llama-orch stream ID` follows it.

    Example: llama-orch submit --priority batch "Write a haiku about snow"
    """
    request: dict[str, Any] = _request_file(options.file, shell) if options.file else {}
    request |= parameters(options)
    if options.prompt or not options.file:
        prompt = prompt_of(options.prompt, shell)
        request |= (
            {"workload": "completion", "prompt": prompt}
            if options.raw
            else {"workload": "chat", "messages": messages_of(prompt, options.system)}
        )
    client = client_of(options, shell)
    request["model_ref"] = options.model or request.get("model_ref") or model_of(client, None)
    admission = client.post("/v1/tasks", request, {"Idempotency-Key": options.key} if options.key else None)
    if not options.wait:
        if shell.as_json:
            shell.json(admission)
            return exits.OK
        shell.line(admission["task_id"])
        shell.note(
            f"queue position {admission['queue_position']}, starts in about {admission['predicted_start_ms']} ms"
        )
        return exits.OK
    follower = Follower(shell, show_text=not shell.as_json)
    follower.follow(client.stream(admission["task_id"]))
    if shell.as_json:
        shell.json({**admission, "text": "".join(follower.text), "end": follower.end})
    return exits.OK if follower.end.get("finish_reason") != "cancelled" else exits.TASK_FAILED


def _request_file(name: str, shell: Shell) -> dict[str, Any]:
    try:
        text = shell.stdin.read(LARGEST_INPUT_BYTES) if name == "-" else Path(name).read_text("utf-8")
        found = json.loads(text)
    except (ValueError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--file {name}: not JSON: {error}", remedy="It holds one task request, as POST /v1/tasks takes it."
        ) from error
    except OSError as error:
        raise UsageError(f"--file {name}: {error.strerror}", remedy="Name a file that you may read.") from error
    if not isinstance(found, dict):
        raise UsageError(f"--file {name}: holds {type(found).__name__}, takes an object", remedy='E.g. {"prompt": "…"}')
    return found


def _task_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", help="the task's id")


def _stream_arguments(parser: argparse.ArgumentParser) -> None:
    _task_argument(parser)
    parser.add_argument(
        "--from", dest="after", metavar="ID", default="", help="go on after this frame id (default: from the start)"
    )
    parser.add_argument(
        "--metrics",
        action="store_true",
        help="ask for metrics too: queue, rate, GPUs (with --json frames of their own)",
    )


@command("stream", "follow a task, from its start or from any frame", arguments=_stream_arguments, needs="server")
def stream(options: argparse.Namespace, shell: Shell) -> int:
    """Works while the task waits, runs, and after it ended. A broken connection is taken up again without a gap.
    Leaving (Ctrl-C) does not cancel the task. With --json each frame is one JSON object on a line.
    """
    follower = Follower(shell, frames_as_json=shell.as_json)
    try:
        follower.follow(client_of(options, shell).stream(options.task, options.after, metrics=options.metrics))
    except KeyboardInterrupt:
        follower.finish_line()
        shell.note(f"The task goes on. Again: llama-orch stream {options.task} --from {follower.last_id}")
        raise
    if shell.stderr.isatty():
        shell.note(follower.summary())
    return exits.OK if follower.end.get("finish_reason") != "cancelled" else exits.TASK_FAILED


@command("cancel", "cancel a task", arguments=_task_argument, needs="server")
def cancel(options: argparse.Namespace, shell: Shell) -> int:
    """Done when it returns: no token comes after it. Cancelling a task that has ended changes nothing."""
    client_of(options, shell).post(f"{task_path(options.task)}/cancel")
    if shell.as_json:
        shell.json({"task_id": options.task, "cancelled": True})
    else:
        shell.note(f"{options.task} is cancelled, or had ended.")
    return exits.OK


def _tasks_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("task", metavar="TASK", nargs="?", help="one task, with its answer (default: a list)")
    parser.add_argument("--state", choices=("queued", "placed", "running", "completed", "cancelled", "failed"))
    parser.add_argument("--model", "-m", metavar="NAME", help="only tasks for this model")
    parser.add_argument("--session", metavar="UUID", help="only tasks of this session")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="at most so many (default: 20)")


@command("tasks", "list tasks, or show one", arguments=_tasks_arguments, needs="server")
def tasks(options: argparse.Namespace, shell: Shell) -> int:
    """Newest first: waiting, running and ended ones."""
    client = client_of(options, shell)
    if options.task:
        found = client.get(task_path(options.task))
        shell.json(found) if shell.as_json else _show_task(found, shell)
        return exits.OK
    page = client.get(
        "/v1/tasks", state=options.state, model_ref=options.model, session_id=options.session, limit=options.limit
    )
    if shell.as_json:
        shell.json(page)
        return exits.OK
    rows = [
        (
            task["task_id"],
            task["state"],
            task["model_ref"],
            task["priority"],
            _clock_time(task.get("created_ms")),
            (task.get("usage") or {}).get("completion_tokens", ""),
            (task.get("error") or {}).get("code") or task.get("finish_reason") or "",
        )
        for task in page["tasks"]
    ]
    shell.table(
        ("TASK", "STATE", "MODEL", "PRIORITY", "CREATED", "TOKENS", "ENDED BY"), rows, empty="There are no tasks."
    )
    return exits.OK


def _show_task(task: dict[str, Any], shell: Shell) -> None:
    for name, value in task.items():
        if value not in (None, "", {}, [], -1) and name != "text":
            shown = (
                _clock_time(value)
                if name.endswith("_ms") and name.removesuffix("_ms") in {"created", "started", "ended"}
                else value
            )
            if isinstance(shown, dict):
                shown = ", ".join(f"{key} {item}" for key, item in shown.items())
            shell.line(f"{name + ':':<20} {shown}")
    if task.get("text"):
        shell.line()
        shell.line(str(task["text"]))


@command("queue", "show what waits", needs="server")
def queue(options: argparse.Namespace, shell: Shell) -> int:
    """Every waiting task in the order in which it will start, per serving group."""
    found = client_of(options, shell).get("/v1/queue")
    if shell.as_json:
        shell.json(found)
        return exits.OK
    groups = found["groups"]
    rows = [
        (
            group["group"],
            entry["position"],
            entry["task_id"],
            entry["priority"],
            f"{entry['waited_ms'] / 1000:.1f} s",
            f"{entry['predicted_start_ms'] / 1000:.1f} s",
        )
        for group in groups
        for entry in group["entries"]
    ]
    shell.table(("GROUP", "POSITION", "TASK", "PRIORITY", "WAITED", "STARTS IN"), rows, empty="The queue is empty.")
    return exits.OK


def task_path(task_id: str) -> str:
    """The path of a task's resource."""
    from urllib.parse import quote

    return f"/v1/tasks/{quote(task_id, safe='')}"


def _clock_time(ms: Any) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(int(ms) / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S") if ms else ""
