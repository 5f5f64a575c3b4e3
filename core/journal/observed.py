"""Who wants to hear what happens to the journal."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..errors import JournalError
from ..projections.projection import Recorded

_log = logging.getLogger("llama_orch.journal")


class Observed:
    """Keeps observers; they are called on the event loop, in the order in which they came."""

    def __init__(self) -> None:
        self._observers: list[Callable[[list[Recorded]], None]] = []
        self._status_observers: list[Callable[[], None]] = []
        self._rebuilt_observers: list[Callable[[], None]] = []
        self._relief_observers: list[Callable[[], None]] = []
        self._fatal_observers: list[Callable[[JournalError], None]] = []

    def on_committed(self, observer: Callable[[list[Recorded]], None]) -> None:
        """Tell an observer of every batch of committed facts, in order."""
        self._observers.append(observer)

    def on_status(self, observer: Callable[[], None]) -> None:
        """Tell an observer when the status changed."""
        self._status_observers.append(observer)

    def on_rebuilt(self, observer: Callable[[], None]) -> None:
        """Tell an observer when head was rebuilt from disk: what runs on engines is void."""
        self._rebuilt_observers.append(observer)

    def on_relief(self, observer: Callable[[], None]) -> None:
        """Tell an observer when engines that were asked to pause may go on."""
        self._relief_observers.append(observer)

    def on_fatal(self, observer: Callable[[JournalError], None]) -> None:
        """Tell an observer that this process may not write any more and has to exit."""
        self._fatal_observers.append(observer)

    def _tell_committed(self, records: list[Recorded]) -> None:
        if records:
            for observer in self._observers:
                try:
                    observer(records)
                except Exception:
                    # The commit is everybody's: a defect of one who looks on must not stop it.
                    _log.exception("an observer of the journal failed")

    @staticmethod
    def _tell(observers: list[Callable[[], None]]) -> None:
        for observer in observers:
            observer()
