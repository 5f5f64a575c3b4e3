"""`run`: one question, one streamed answer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .. import exits
from ..asking import add_request_arguments, messages_of, model_of, parameters, prompt_of
from ..command import command
from ..connect import Servers
from ..exits import CliError
from ..following import Follower, Terminated, terminations
from ..shell import Shell

if TYPE_CHECKING:
    from ..client import Client


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", help="what you want; - or nothing reads standard input")
    parser.add_argument(
        "--raw", action="store_true", help="send the prompt as it is, without the model's chat template"
    )
    add_request_arguments(parser)


@command("run", "ask a model and print its answer as it comes", arguments=_arguments, needs="server")
def run(options: argparse.Namespace, shell: Shell) -> int:
    """Uses the server that is up, or starts one for the call, with the configured pools or the bundled model.
    Ctrl-C cancels the task. With --json one object is printed when the task has ended.

    Example: llama-orch run --seed 7 "Write a haiku about rain"
    """
    prompt = prompt_of(options.prompt, shell)
    request: dict[str, Any] = parameters(options)
    if options.raw:
        if options.system:
            raise exits.UsageError(
                "--raw and --system exclude each other", remedy="Put the instruction into the prompt."
            )
        request |= {"workload": "completion", "prompt": prompt}
    else:
        request |= {"workload": "chat", "messages": messages_of(prompt, options.system)}
    with Servers(options, shell) as servers:
        follower = Follower(shell, show_text=not shell.as_json)
        status = ask(servers, request, options.model, follower, shell)
        if shell.as_json and follower.end:
            shell.json(
                {
                    "task_id": request["task_id"],
                    "model_ref": request["model_ref"],
                    "text": "".join(follower.text),
                    "started": follower.started,
                    "end": follower.end,
                }
            )
        return status


def ask(servers: Servers, request: dict[str, Any], model: str | None, follower: Follower, shell: Shell) -> int:
    """Submit the request and follow it to its end; an interruption cancels it.

    The task's id is made here, so that the task can be cancelled at any moment and a repeated submission is the same one.

    :raises CliError: refused, failed, or the server is gone.
    """
    import uuid

    task_id = request["task_id"] = str(uuid.uuid4())
    asked: list[Client] = []

    def submit(client: Client) -> Client:
        request["model_ref"] = model_of(client, model)
        asked.append(client)
        client.post("/v1/tasks", request)
        return client

    try:
        with terminations():
            follower.follow(servers.ask(submit).stream(task_id))
    except (KeyboardInterrupt, Terminated, BrokenPipeError) as stop:
        if asked:
            _cancel(asked[-1], task_id, shell)
        if isinstance(stop, BrokenPipeError):
            raise
        follower.finish_line()
        shell.note(f"Cancelled after {follower.tokens} tokens.")
        return exits.INTERRUPTED if isinstance(stop, KeyboardInterrupt) else exits.TERMINATED
    if shell.stderr.isatty():
        shell.note(follower.summary())
    return exits.OK if follower.end.get("finish_reason") != "cancelled" else exits.TASK_FAILED


def _cancel(client: Client, task_id: str, shell: Shell) -> None:
    from ..client import Client

    shell.clear_status()
    try:
        Client(client.url, timeout_s=5, token=client.token).post(f"/v1/tasks/{task_id}/cancel")
    except CliError as error:
        if error.code != "NOT_FOUND":  # it had not been accepted yet
            shell.note(f"The task could not be cancelled: {error.message}")
