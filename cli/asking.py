"""Arguments that say what to generate, and the task request made of them (shared by run, chat and submit)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .exits import CliError, UsageError
from .shell import Shell

if TYPE_CHECKING:
    from .client import Client

#: largest text read from standard input or a file, bytes
LARGEST_INPUT_BYTES = 16_000_000


def add_request_arguments(parser: argparse.ArgumentParser) -> None:
    """The parameters of a task, under the names that the API gives them."""
    asked = parser.add_argument_group("what to generate")
    asked.add_argument(
        "--model",
        "-m",
        metavar="NAME",
        help="model (default: the server's first; `llama-orch capabilities` lists them)",
    )
    asked.add_argument("--system", metavar="TEXT", help="system message")
    asked.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of the answer")
    asked.add_argument("--temperature", type=float, metavar="T", help="0 = always the likeliest token")
    asked.add_argument("--top-p", type=float, metavar="P", help="nucleus sampling")
    asked.add_argument("--top-k", type=int, metavar="K", help="sample among the K likeliest tokens")
    asked.add_argument(
        "--seed", type=int, metavar="N", help="seed of the sampling (default: the server picks one and says it)"
    )
    asked.add_argument(
        "--stop", metavar="TEXT", action="append", help="end before this text; may be given more than once"
    )
    asked.add_argument("--priority", choices=("interactive", "batch"), help="class in the queue (default: interactive)")
    asked.add_argument("--deadline-ms", type=int, metavar="MS", help="the task fails unless it ends in this time")
    asked.add_argument(
        "--determinism", choices=("strict", "best_effort"), help="strict: the same request gives the same tokens"
    )
    asked.add_argument("--session", metavar="UUID", help="session that the task is a turn of")
    asked.add_argument("--pin", metavar="POOL", help="only this pool")


def parameters(options: argparse.Namespace) -> dict[str, Any]:
    """The request's fields that the arguments set, without prompt and model."""
    given: dict[str, Any] = {
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "seed": options.seed,
        "stop": options.stop,
        "priority": options.priority,
        "deadline_ms": options.deadline_ms,
        "determinism": options.determinism,
        "session_id": options.session,
        "placement": {"mode": "pin", "pin_pool_id": options.pin} if options.pin else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def prompt_of(words: Sequence[str], shell: Shell) -> str:
    """The words of the command line as one prompt; ``-``, or nothing when input is piped, reads standard input.

    :raises UsageError: there is no prompt.
    """
    if list(words) == ["-"] or (not words and not shell.stdin.isatty()):
        try:
            text = shell.stdin.read(LARGEST_INPUT_BYTES + 1)
        except UnicodeDecodeError as error:
            raise UsageError(
                f"standard input is not UTF-8 (byte {error.start})", remedy="Convert it, e.g. with iconv."
            ) from error
        if len(text) > LARGEST_INPUT_BYTES:
            raise UsageError(
                f"standard input is larger than {LARGEST_INPUT_BYTES} bytes", remedy="Send a shorter prompt."
            )
    else:
        text = " ".join(words)
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UsageError("the prompt is not UTF-8 text", remedy="Convert it to UTF-8 first.")
    if not text.strip():
        raise UsageError("there is no prompt", remedy='Say what you want: llama-orch run "Write a haiku about rain"')
    return text


def messages_of(prompt: str, system: str | None) -> list[dict[str, str]]:
    """A chat of one question."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": prompt}]


def model_of(client: Client, named: str | None) -> str:
    """The model to ask for: the named one, else the server's first. :raises CliError: it has none for this caller."""
    if named:
        return named
    listed = client.get("/v1/models")
    names = [str(model["id"]) for model in (listed or {}).get("data", [])]
    if not names:
        raise CliError(
            "the server has no model that you may use",
            remedy="Use a key that is for one of its models, or add a pool to its configuration: `llama-orch init` writes a"
            " first one.",
        )
    return names[0]
