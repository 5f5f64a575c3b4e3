"""`chat`: a conversation at the terminal."""

from __future__ import annotations

import argparse
import contextlib

from .. import exits
from ..asking import add_request_arguments, model_of, parameters
from ..command import command
from ..connect import Servers
from ..exits import CliError
from ..following import Follower
from ..shell import Shell
from .run import ask

_HELP = "/reset forgets the conversation, /system TEXT sets the system message, /exit or Ctrl-D ends; Ctrl-C cancels an answer."


@command("chat", "talk with a model", arguments=add_request_arguments, needs="server")
def chat(options: argparse.Namespace, shell: Shell) -> int:
    """The conversation is kept here, not on the server. Each line of input is a message; piped input works as well.
    /reset forgets the conversation, /system TEXT sets the system message, /exit or Ctrl-D ends; Ctrl-C cancels an answer.
    With --json each answer is one JSON object on a line.
    """
    with Servers(options, shell) as servers:
        return Conversation(servers, options, shell).hold()


class Conversation:
    """What was said, and the loop that adds to it."""

    def __init__(self, servers: Servers, options: argparse.Namespace, shell: Shell) -> None:
        self._servers, self._options, self._shell = servers, options, shell
        self._system: str | None = options.system
        self._said: list[dict[str, str]] = []

    def hold(self) -> int:
        """Read and answer until the input ends; the exit status of the last failed answer, 0 if none failed."""
        typed = self._shell.stdin.isatty()
        model = self._servers.ask(lambda client: model_of(client, self._options.model))
        if typed:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 - line editing and recall for input()
            self._shell.note(f"Talking with {model}. {_HELP}")
        status = exits.OK
        while True:
            try:
                line = self._read(typed=typed)
            except KeyboardInterrupt:
                self._shell.note("")
                continue
            if line is None or line in {"/exit", "/quit"}:
                return status
            if not line:
                continue
            if line.startswith("/"):
                self._instruct(line)
                continue
            try:
                answered = self._answer(line, model)
            except CliError as error:
                self._said.pop()
                if error.status == exits.UNREACHABLE:
                    raise
                self._shell.error(error)
                answered = error.status
            if answered == exits.TERMINATED:
                return answered
            status = answered if answered != exits.INTERRUPTED else status

    def _read(self, *, typed: bool) -> str | None:
        if typed and self._shell.at_terminal:
            try:
                return input("> ").strip()
            except EOFError:
                self._shell.line()
                return None
        line = self._shell.stdin.readline()
        return line.strip() if line else None

    def _instruct(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "/reset":
            self._said.clear()
            self._shell.note("The conversation begins anew.")
        elif word == "/system":
            self._system = rest.strip() or None
            self._shell.note("The system message is set." if self._system else "There is no system message any more.")
        else:
            self._shell.note(f"{word} is no instruction. {_HELP}")

    def _answer(self, line: str, model: str) -> int:
        self._said.append({"role": "user", "content": line})
        system = [{"role": "system", "content": self._system}] if self._system else []
        follower = Follower(self._shell, show_text=not self._shell.as_json)
        request = {**parameters(self._options), "workload": "chat", "messages": [*system, *self._said]}
        status = ask(self._servers, request, model, follower, self._shell)
        said = "".join(follower.text)
        if status == exits.INTERRUPTED and not said:
            self._said.pop()
        else:
            self._said.append({"role": "assistant", "content": said})
        if self._shell.as_json:
            self._shell.json_line({"task_id": request["task_id"], "text": said, "end": follower.end})
        return status
