"""Prompts as files, and the one way in which strangers' texts enter a message: escaped, capped, between random boundaries.

Hosted policies build their questions with it. It never changes what a text says without showing it: what is cut or escaped
stays visible to the reader.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from utils.hashing import sha256_hex
from utils.llm.untrusted import capped, token, visible

PROMPTS = Path(__file__).parent / "prompts"
COMMON = "answering"
"""File with the rules that hold for every agent."""

PROMPTED_AGENTS = ("news", "technical", "fundamental", "strategist")
"""Agents that there is a prompt for."""


@cache
def system_prompt(agent_type: str) -> str:
    """Return the system message of an agent: its own file and the rules for every answer.

    Raises
    ------
    FileNotFoundError
        If there is no prompt for the agent.
    """
    parts = (PROMPTS / f"{name}.md" for name in (agent_type, COMMON))
    return "\n\n".join(path.read_text(encoding="utf-8").strip() for path in parts)


@cache
def prompt_hash(agent_type: str) -> str:
    """Return the SHA-256 of the system message, which stands with whatever was decided by it."""
    return sha256_hex(system_prompt(agent_type))


def legible(text: str, limit: int) -> str:
    """Return untrusted text in one line with nothing hidden in it, cut visibly beyond `limit` characters."""
    return capped(visible(" ".join(text.split())), limit)


def delimited(lines: Iterable[str], key: bytes) -> str:
    """Return lines of untrusted text between boundaries that nobody who wrote them could know.

    Parameters
    ----------
    lines : iterable of str
        Each made of texts that went through `legible`.
    key : bytes
        Secret of the process. The token is the HMAC-SHA256 of the lines under it, so that equal requests give equal bytes
        under the same key, and a text that quotes a token has changed it thereby.
    """
    content = "\n".join(lines)
    mark = token(key, "data", content)
    return f"=== data {mark} begins ===\n{content}\n=== data {mark} ends ==="


def within(lines: Sequence[str], budget_bytes: int) -> list[str]:
    """Return the leading lines that fit into a number of UTF-8 bytes, line ends included; see `noted`."""
    kept: list[str] = []
    for line in lines:
        budget_bytes -= len(line.encode()) + 1
        if budget_bytes < 0:
            break
        kept.append(line)
    return kept


def noted(kept: Sequence[str], total: int) -> list[str]:
    """Return the kept lines, with one more that says how many of the total are missing, if any are."""
    missing = total - len(kept)
    return [*kept, f"({missing} more left out)"] if missing else list(kept)
