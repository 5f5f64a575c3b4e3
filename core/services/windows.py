"""When the windows of budgets begin and end, by the calendar of a time zone."""

from __future__ import annotations

import datetime as dt
import zoneinfo

from ..errors import InvalidParamsError
from ..events.budget import BudgetRolled
from ..projections.budgets import Account

WINDOWS = ("none", "day", "month")
_NS = 1_000_000_000


def zone(name: str) -> dt.tzinfo:
    """A time zone by its name. :raises InvalidParamsError: this machine knows none of that name."""
    if name == "UTC":
        return dt.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        msg = f"there is no time zone {name[:64]!r} on this machine"
        raise InvalidParamsError(
            msg, field="timezone", got=name[:64], remedy='Use a name such as "UTC" or "Europe/Amsterdam".'
        ) from error


def bounds(window: str, timezone: str, now_ns: int) -> tuple[int, int]:
    """Begin and end, Unix ns, of the window that ``now_ns`` lies in; ``(0, 0)`` for one that never ends.

    :raises InvalidParamsError: the time zone is not known.
    """
    if window == "none":
        return 0, 0
    here = zone(timezone)
    today = dt.datetime.fromtimestamp(now_ns // _NS, here).date()
    first = today if window == "day" else today.replace(day=1)
    following = first + dt.timedelta(days=1 if window == "day" else 32)
    if window == "month":
        following = following.replace(day=1)
    return _midnight_ns(first, here), _midnight_ns(following, here)


def _midnight_ns(day: dt.date, here: dt.tzinfo) -> int:
    # Where summer time begins at midnight, that moment is the one that the clock shows as one o'clock.
    return int(dt.datetime.combine(day, dt.time(), here).timestamp()) * _NS


def rolled(account: Account, now_ns: int) -> BudgetRolled:
    """The next window of an account that is due; after an outage it may be a later one."""
    declared = account.declared
    try:
        start_ns, end_ns = bounds(declared.window, declared.timezone, now_ns)
    except InvalidParamsError:
        # The zone was known when the budget was set, and this machine does not have it any more.
        start_ns, end_ns = bounds(declared.window, "UTC", now_ns)
    # A window never begins before the last one ended, whatever became of the zone's rules.
    start_ns = max(start_ns, account.window_end_ns)
    return BudgetRolled(
        account=declared.account,
        window_start_ns=start_ns,
        window_end_ns=max(end_ns, start_ns + _NS),
        spent=account.spent,
    )
