"""Bars of transfers on standard error, where a person looks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .shell import Shell

if TYPE_CHECKING:
    from ..pools.models.transfer import Progress

_WORDS = {"fetch": "fetching", "verify": "reading"}


@contextlib.contextmanager
def bars(shell: Shell) -> Iterator[Callable[[Progress], None] | None]:
    """A bar for each phase while the block runs; ``None`` where nobody looks, and then nothing heavy is imported."""
    if not shell.progress_wanted:
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(file=shell.stderr), transient=True) as shown:
        tasks = {phase: shown.add_task(words, start=False, visible=False) for phase, words in _WORDS.items()}

        def tell(progress: Progress) -> None:
            task = tasks.get(progress.phase)
            if task is None:
                return
            shown.start_task(task)
            shown.update(
                task,
                description=escape(f"{_WORDS[progress.phase]} {progress.file.rsplit('/', 1)[-1][:60]}"),
                completed=progress.done_bytes,
                total=progress.total_bytes or None,
                visible=True,
            )

        yield tell
