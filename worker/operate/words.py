"""How moments, durations and counts are read and written for people."""

from __future__ import annotations

from datetime import datetime, timedelta


def moment(text: str) -> datetime:
    """Read a time as the database writes it in JSON."""
    return datetime.fromisoformat(text)


def clock(at: datetime | None) -> str:
    """Write a moment for people: UTC, to the second."""
    return "?" if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def counted(number: int, noun: str) -> str:
    """Write `1 job`, `2 jobs`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def span(seconds: float) -> str:
    """Write a duration for people."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    whole = timedelta(seconds=round(seconds))
    hours, minutes = divmod(whole.seconds // 60, 60)
    return f"{whole.days} d {hours} h" if whole.days else f"{hours} h {minutes} min" if hours else f"{minutes} min"
