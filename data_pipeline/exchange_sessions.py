"""Prints an exchange's sessions as JSON: ``exchange_sessions.py NAME START END``.

A script of its own, run as a child process by `data_pipeline.calendar`: exchange_calendars brings pandas, 75 MB that a
daemon would carry for months for the sake of one table.
"""

import json
import sys
import warnings


def main(name: str, start: str, end: str) -> dict[str, object]:
    """Return ``sessions`` as [date, open, close] with epoch seconds, or ``known`` names, or the ``fault``."""
    warnings.simplefilter("ignore")  # of pandas' future; nothing that a user could act upon
    import exchange_calendars

    known = exchange_calendars.get_calendar_names()
    if name not in known:
        return {"known": known}
    try:
        calendar = exchange_calendars.get_calendar(name, start=start, end=end)
    except ValueError as error:
        return {"fault": str(error)}
    days = (stamp.date().isoformat() for stamp in calendar.sessions)
    opens = (nanos // 1_000_000_000 for nanos in calendar.opens_nanos.tolist())
    closes = (nanos // 1_000_000_000 for nanos in calendar.closes_nanos.tolist())
    return {"sessions": list(zip(days, opens, closes, strict=True))}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
