"""What is wrong with the settings of budgets and sessions, beyond their types."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.errors import InvalidParamsError
from ..core.services.windows import zone
from ..core.settings import Settings


def client_faults(settings: Settings) -> Iterator[tuple[str, object, str]]:
    """Key, value and what is wrong with it."""
    windows: dict[str, int] = {}
    for number, caps in enumerate(settings.budgets.keys):
        key = f"budgets.keys[{number}]"
        try:
            zone(caps.timezone)
        except InvalidParamsError as error:
            yield f"{key}.timezone", caps.timezone, f"{error.message}; {error.what_to_do}"
        if caps.window in windows:
            first = windows[caps.window]
            yield f"{key}.window", caps.window, f"is that of budgets.keys[{first}] too; put their caps together"
        windows.setdefault(caps.window, number)
    sessions = settings.sessions
    for name, got, most in (
        ("ttl_ms", sessions.ttl_ms, sessions.max_ttl_ms),
        ("turn_limit", sessions.turn_limit, sessions.max_turn_limit),
    ):
        if got > most:
            yield f"sessions.{name}", got, f"is more than sessions.max_{name} allows ({most})"
