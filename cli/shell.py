"""The shell as a command sees it: its streams, whether a person looks at them, and how results are printed.

Results go to standard output (as JSON with ``--json``); progress, notes and errors go to standard error. Tables
and colour only at a terminal. Text that a model or a server said is cleaned of control characters at a terminal,
so that it cannot move the cursor, set a title or ring.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from .exits import CliError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


@dataclass(slots=True)
class Shell:
    """Streams and environment of one call; tests pass their own."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO
    environ: Mapping[str, str]
    #: print results and errors as JSON
    as_json: bool = False
    #: the user said --quiet
    quiet: bool = False
    _status_shown: bool = field(default=False, init=False)

    @property
    def at_terminal(self) -> bool:
        """A person reads standard output."""
        return self.stdout.isatty()

    @property
    def progress_wanted(self) -> bool:
        """A person reads standard error, and wants more than the result."""
        return self.stderr.isatty() and not self.quiet and not self.as_json

    @property
    def colour(self) -> bool:
        """Colour is welcome on standard output (https://no-color.org)."""
        return self.at_terminal and not self.environ.get("NO_COLOR") and self.environ.get("TERM") != "dumb"

    # --- results --------------------------------------------------------------------------------------------------

    def line(self, text: str = "") -> None:
        """One line of the result."""
        self.stdout.write(self._safe(text) + "\n")

    def piece(self, text: str) -> None:
        """A piece of streamed text, shown at once."""
        self.stdout.write(self._safe(text))
        self.stdout.flush()

    def json(self, value: object) -> None:
        """The result as JSON: indented for a person, one line for a program."""
        indent = 2 if self.at_terminal else None
        self.stdout.write(json.dumps(value, indent=indent, ensure_ascii=False, default=str) + "\n")

    def json_line(self, value: object) -> None:
        """One of many results: a JSON object per line, shown at once."""
        self.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
        self.stdout.flush()

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str = "") -> None:
        """Rows under headings: a table at a terminal, tab-separated lines with a heading when piped.

        :param empty: what to say at a terminal when there are no rows.
        """
        shown = [[self._safe("" if cell is None else str(cell)).replace("\t", " ") for cell in row] for row in rows]
        if not self.at_terminal:
            for row in [list(columns), *shown]:
                self.stdout.write("\t".join(cell.replace("\n", " ") for cell in row) + "\n")
            return
        if not shown and empty:
            self.line(empty)
            return
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in columns:
            table.add_column(name, overflow="fold", no_wrap=name == "TASK")  # ids are copied whole
        for row in shown:
            table.add_row(*(Text(cell) for cell in row))
        Console(file=self.stdout, no_color=not self.colour, width=self.width).print(table)

    @property
    def width(self) -> int:
        """Columns that a line of the result may have."""
        return _width(self.stdout)

    # --- beside the result ----------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A remark on standard error; not with --quiet or --json."""
        self.clear_status()
        self.stdout.flush()
        if not self.quiet and not self.as_json:
            self.stderr.write(self._safe(text, self.stderr) + "\n")
            self.stderr.flush()

    def status(self, text: str) -> None:
        """The progress line on standard error, replaced by the next one; only where a person looks."""
        if not self.progress_wanted:
            return
        self.stderr.write("\r\x1b[2K" + self._safe(text, self.stderr)[: _width(self.stderr) - 1])
        self.stderr.flush()
        self._status_shown = True

    def clear_status(self) -> None:
        """Remove the progress line."""
        if self._status_shown:
            self.stderr.write("\r\x1b[2K")
            self.stderr.flush()
            self._status_shown = False

    def error(self, error: CliError) -> None:
        """What went wrong and what to do, on standard error."""
        self.clear_status()
        if self.as_json:
            self.stderr.write(json.dumps({"error": error.to_dict()}, ensure_ascii=False, default=str) + "\n")
        else:
            self.stderr.write(f"llama-orch: {self._safe(error.message, self.stderr)}\n")
            if error.remedy:
                self.stderr.write(f"  {self._safe(error.remedy, self.stderr)}\n")
        self.stderr.flush()

    def _safe(self, text: str, stream: TextIO | None = None) -> str:
        return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text) if (stream or self.stdout).isatty() else text


def _width(stream: TextIO) -> int:
    """Columns of the stream's terminal; 100 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        columns = os.get_terminal_size(stream.fileno()).columns
        if columns >= 20:
            return columns
    return 100


def system_shell() -> Shell:
    """The shell of this process. Text that its encoding cannot show is escaped, never an error; a standard stream that the
    caller closed is nothing to read from or write to."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    closed = [open(os.devnull, mode, encoding="utf-8") for mode in ("r", "w", "w")]  # noqa: PTH123, SIM115 - until the end
    given: list[TextIO | None] = [sys.stdin, sys.stdout, sys.stderr]
    stdin, stdout, stderr = (stream or instead for stream, instead in zip(given, closed, strict=True))
    return Shell(stdin=stdin, stdout=stdout, stderr=stderr, environ=os.environ)
