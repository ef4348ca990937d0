"""Logging of the daemon: one logger, console or JSON lines, with secrets struck out.

Call `configure_logging` once, from the entry point. Libraries and notebooks just use `logger`.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

logger = logging.getLogger("stock_agents")

_SECRET_IN_TEXT = re.compile(
    r"((?:token|api_?key|password)=|Bearer\s+)[^&@\s\"']+|(://[^:/\s@]+:)[^@/\s]+(?=@)", re.IGNORECASE
)


class RedactingFilter(logging.Filter):
    """Strikes out keys, passwords and bearer tokens, whoever logs them."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        super().__init__()
        self._secrets = tuple(secret for secret in secrets if len(secret) >= 6)

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record's message and traceback in place; always keeps the record."""
        record.msg, record.args = self._redacted(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = self._redacted(record.exc_text or logging.Formatter().formatException(record.exc_info))
        return True

    def _redacted(self, text: str) -> str:
        text = _SECRET_IN_TEXT.sub(lambda m: f"{m.group(1) or m.group(2)}********", text)
        for secret in self._secrets:
            text = text.replace(secret, "********")
        return text


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, thread, message, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def configure_logging(level: str = "INFO", style: str = "console", secrets: tuple[str, ...] = ()) -> None:
    """Send log records to standard error, as text for people (`console`) or as JSON lines (`json`)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RedactingFilter(secrets))
    if style == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.getLevelName(level), logging.INFO))
    logger.setLevel(level)
    for noisy in ("httpx", "httpx2", "httpcore", "httpcore2", "websockets"):  # each request with its URL
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # it repeats for every connection what the library says once
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)


def complain(error: object, code: int) -> int:
    """Tell a person on standard error, in one line, what a command failed with; return its exit code."""
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    return code
