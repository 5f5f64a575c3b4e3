"""The command line's entry points. Nothing heavy is imported here, so that `--help` is quick."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import exits
from .exits import CliError
from .shell import Shell, system_shell

if TYPE_CHECKING:
    from ..core.errors import JournalError


def main(arguments: Sequence[str] | None = None, shell: Shell | None = None) -> int:
    """Run one command and return its exit status; every failure becomes a sentence, never a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    shell = shell or system_shell()
    # Known before parsing, so that a usage error is JSON as well.
    before_rest = given[: given.index("--")] if "--" in given else given
    shell.as_json = "--json" in before_rest
    try:
        status = _run(given, shell)
        shell.stdout.flush()
    except KeyboardInterrupt:
        shell.clear_status()
        status = exits.INTERRUPTED
    except BrokenPipeError:
        status = exits.PIPE_CLOSED
    except CliError as error:
        status = _tell(shell, error)
    except OSError as error:
        status = _tell(shell, _os_error(error))
    _settle(shell)
    return status


def orchestratord(arguments: Sequence[str] | None = None) -> int:
    """The daemon's own name: `orchestratord …` is `llama-orch serve …`."""
    return main(["serve", *(sys.argv[1:] if arguments is None else arguments)])


def pool_managerd(arguments: Sequence[str] | None = None) -> int:
    """The program that looks after engines."""
    from .managerd import main as run

    return run(arguments)


def _run(given: list[str], shell: Shell) -> int:
    from .parser import build_parser, parse

    parser = build_parser()
    try:
        options = parse(parser, given)
    except SystemExit as finished:  # --help and --version
        return int(finished.code or 0)
    if getattr(options, "command", None) is None:
        parser.print_help(shell.stderr)
        return exits.USAGE
    shell.as_json, shell.quiet = options.as_json, options.quiet
    from ..core.errors import ConfigError, JournalError, OrchError

    try:
        return int(options.command.execute(options, shell))
    except ConfigError as error:
        raise CliError(
            error.message, remedy=error.what_to_do, status=exits.USAGE, code=error.code, **error.details
        ) from error
    except JournalError as error:
        raise CliError(error.message, remedy=_journal_remedy(error), code=type(error).__name__) from error
    except OrchError as error:
        raise CliError(error.message, remedy=error.what_to_do, code=error.code) from error
    except (CliError, OSError):
        raise
    except Exception as error:
        if os.environ.get("LLORCH_DEBUG"):
            raise
        raise CliError(
            f"this is a defect: {type(error).__name__}: {error}",
            remedy="Run it again with LLORCH_DEBUG=1 for the details, and report them.",
            code="INTERNAL",
        ) from error


def _journal_remedy(error: JournalError) -> str:
    """What to do about a journal that is read here, where there is no server's log to look at."""
    from ..core.errors import CorruptJournalError, OrchError

    if error.what_to_do != OrchError.remedy:
        return error.what_to_do
    if isinstance(error, CorruptJournalError):
        return "`llama-orch journal verify` locates damage; restore a backup, or name another journal with --data-dir."
    return "See that the database is up, readable and has room, or name another journal with --data-dir or journal.url."


def _os_error(error: OSError) -> CliError:
    where = f"{error.filename}: " if error.filename else ""
    return CliError(
        f"{where}{error.strerror or error}",
        remedy="Check that the path exists, is yours, and that the disk has room.",
        code="OS_ERROR",
    )


def _tell(shell: Shell, error: CliError) -> int:
    with contextlib.suppress(OSError, ValueError):
        shell.stdout.flush()  # what was done comes before why it ended
    with contextlib.suppress(OSError, ValueError):
        shell.error(error)
    return error.status


def _settle(shell: Shell) -> None:
    """Flush; where the reader is gone, point standard output at nothing, so that the interpreter's exit stays silent."""
    for stream, number in ((shell.stdout, 1), (shell.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError):
            if stream in {sys.stdout, sys.stderr}:
                with contextlib.suppress(OSError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), number)


if __name__ == "__main__":
    sys.exit(main())
