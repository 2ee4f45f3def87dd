"""PostgreSQL's functions on dates and times, for SQLite: dates are text as SQLite's own functions write it."""

import calendar
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

_SECONDS = {"week": 604_800, "day": 86_400, "hour": 3_600, "minute": 60, "min": 60, "second": 1, "sec": 1}
_STEP = re.compile(r"([+-]?\d+)\s*(year|month|mon|week|day|hour|minute|min|second|sec)s?\b", re.IGNORECASE)


def _parsed(text: Any) -> tuple[datetime, bool]:
    """A date or time, and whether it is a date only. Raises ValueError."""
    return datetime.fromisoformat(str(text)), len(str(text)) == len("2000-01-01")


def _written(moment: datetime, is_date: bool) -> str:
    return moment.strftime("%Y-%m-%d" if is_date else "%Y-%m-%d %H:%M:%S")


def _add(text: Any, sign: str, interval: str) -> str | None:
    """A date or time and an interval; a date stays one if whole days are added."""
    if text is None:
        return None
    moment, is_date = _parsed(text)
    for amount, unit in _STEP.findall(interval):
        count = int(amount) * (-1 if sign == "-" else 1)
        seconds = _SECONDS.get(unit.lower())
        if seconds is None:
            moment = _add_months(moment, count * (12 if unit.lower() == "year" else 1))
        else:
            moment, is_date = moment + timedelta(seconds=count * seconds), is_date and seconds >= _SECONDS["day"]
    return _written(moment, is_date)


def _add_months(moment: datetime, count: int) -> datetime:
    years, month = divmod(moment.year * 12 + moment.month - 1 + count, 12)
    day = min(moment.day, calendar.monthrange(years, month + 1)[1])
    return moment.replace(year=years, month=month + 1, day=day)


def _trunc(unit: str, text: Any) -> str | None:
    if text is None:
        return None
    moment, is_date = _parsed(text)
    unit = unit.lower()
    if unit == "week":
        moment -= timedelta(days=moment.weekday())
    fields: dict[str, int] = {}
    for name, first in (("second", 0), ("minute", 0), ("hour", 0), ("day", 1), ("month", 1)):
        if unit == name or (unit == "week" and name == "day"):
            break
        if unit == "quarter" and name == "month":
            fields["month"] = 3 * ((moment.month - 1) // 3) + 1
            break
        fields[name] = first
    return _written(moment.replace(microsecond=0, **fields), is_date)  # type: ignore[arg-type]


def _extract(field: str, text: Any) -> int | None:
    if text is None:
        return None
    moment, _ = _parsed(text)
    field = field.lower()
    values: dict[str, int] = {
        "epoch": calendar.timegm(moment.timetuple()),
        "dow": moment.isoweekday() % 7,
        "doy": moment.timetuple().tm_yday,
        "week": moment.isocalendar().week,
        "quarter": (moment.month - 1) // 3 + 1,
    }
    return values[field] if field in values else int(getattr(moment, field))


_PATTERNS = dict(
    zip(
        ("YYYY", "MM", "DD", "HH24", "HH12", "HH", "MI", "SS", "Month", "Mon", "Day", "Dy"),
        ("%Y", "%m", "%d", "%H", "%I", "%I", "%M", "%S", "%B", "%b", "%A", "%a"),
        strict=True,
    )
)


def _format(text: Any, pattern: str) -> str | None:
    """PostgreSQL's patterns, and MySQL's, which some of the data has. Names of months are not padded."""
    if text is None:
        return None
    moment, _ = _parsed(text)
    if "%" in pattern:
        return moment.strftime(pattern.replace("%i", "%M").replace("%s", "%S"))
    names = re.compile("|".join(_PATTERNS))
    return moment.strftime(names.sub(lambda match: _PATTERNS[match[0]], pattern))


FUNCTIONS: Sequence[tuple[str, int, Callable[..., Any]]] = (
    ("pg_add", 3, _add),
    ("pg_trunc", 2, _trunc),
    ("pg_extract", 2, _extract),
    ("pg_format", 2, _format),
)
"""Name, number of arguments and function: to be given to the connection that runs the statements."""
