"""Exit statuses of the command line, and the error that carries one.

Scripts rely on these; `docs/reference/cli.md` shows the table.
"""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
REFUSED: Final = 4
TASK_FAILED: Final = 5
INTERRUPTED: Final = 130
PIPE_CLOSED: Final = 141
TERMINATED: Final = 143

MEANINGS: Final[dict[int, str]] = {
    OK: "done",
    FAILED: "it failed; the message says why and what to do",
    USAGE: "the command line, the configuration or the request is wrong",
    UNREACHABLE: "no server answers at the URL, or none is running",
    REFUSED: "the server refused for now (queue full, pool not ready, journal not writable): try again later",
    TASK_FAILED: "the task was accepted and ended with an error",
    INTERRUPTED: "interrupted with Ctrl-C; a running task was cancelled",
    PIPE_CLOSED: "whoever read the output went away",
    TERMINATED: "ended by SIGTERM",
}


class CliError(Exception):
    """A command could not do what was asked: one sentence, what to do about it, and the exit status."""

    def __init__(
        self, message: str, *, remedy: str = "", status: int = FAILED, code: str = "", **details: object
    ) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.status = status
        #: the server's stable code where it said one
        self.code = code
        self.details = details

    def to_dict(self) -> dict[str, object]:
        """The error as ``--json`` prints it on standard error."""
        body: dict[str, object] = {"message": self.message, "exit_status": self.status}
        if self.code:
            body["code"] = self.code
        if self.remedy:
            body["remedy"] = self.remedy
        return body | self.details


class UsageError(CliError):
    """The command line itself is wrong."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy, status=USAGE, code="USAGE")


class AskAgainError(CliError):
    """The server went away; the same request may be sent again, to it or to the next one, without being done twice."""
