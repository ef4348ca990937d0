"""A folder of one's own history: ``prices/SYMBOL.csv``, and where there are any ``news/`` and ``fundamentals/``.

The replay feed reads it through `HistorySource`, as it does the bundled sample. Whatever makes a folder unusable is a
`ConfigError` here; what is wrong inside a file is judged line by line elsewhere.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from utils.errors import ConfigError, nearest
from utils.hashing import sha256_hex
from utils.logs import logger

_SYMBOL = re.compile(r"^[A-Z0-9][A-Z0-9.\-]{0,19}$")
_CHUNK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class SourceText:
    """The lines of one symbol in one file.

    Attributes
    ----------
    name : str
        Relative to the source, with forward slashes: part of the data's identity.
    place : str
        For the log.
    sha256 : str
        Of the bytes that hold these lines, as they lie on disk.
    lines : list of (int, str)
        Line numbers from 1, and the lines.
    fault : str or None
        Why the file ends early, None where it does not.
    """

    name: str
    place: str
    sha256: str
    lines: list[tuple[int, str]]
    fault: str | None = None


GENERATED_BY = "scenario.yaml"
"""The file by which the folder of an exported simulated market is told from real history."""


class HistorySource(Protocol):
    """Where a replay's history lies.

    Failure contract: `prices` raises `ConfigError` for a symbol that is not there; `news` and `fundamentals` return
    None where there is none; a file that cannot be opened is a `ConfigError`.

    Attributes
    ----------
    name : str
        For people.
    symbols : tuple of str
        All that it holds, sorted.
    ex_close_factors : bool
        See `csv_history.BarParser`.
    generated : bool
        Whether it was simulated: what comes of it is then never called performance.
    """

    name: str
    symbols: tuple[str, ...]
    ex_close_factors: bool
    generated: bool

    def prices(self, symbol: str) -> SourceText:
        """Return the lines of the price file, the header first."""
        ...

    def news(self, symbol: str) -> SourceText | None:
        """Return the lines of the news file."""
        ...

    def fundamentals(self, symbol: str) -> SourceText | None:
        """Return the lines of the file of filings."""
        ...


class ReplayFolder:
    """History in a folder of the replay format.

    Raises
    ------
    ConfigError
        If the folder, its subfolder ``prices`` or any price file in that is missing.
    """

    ex_close_factors = False

    def __init__(self, folder: Path) -> None:
        self.name = folder.name or str(folder)
        self.generated = (folder / GENERATED_BY).is_file()
        self._folder = folder
        if not folder.is_dir():
            raise ConfigError(f"replay_dir: there is no folder {str(folder)!r}; give one that holds prices/SYMBOL.csv")
        if not (folder / "prices").is_dir():
            raise ConfigError(f"replay_dir: {str(folder)!r} has no subfolder prices; put prices/SYMBOL.csv there")
        self._prices = self._files("prices", (".csv",))
        if not self._prices:
            raise ConfigError(f"replay_dir: {str(folder / 'prices')!r} holds no SYMBOL.csv")
        self._news = self._files("news", (".jsonl.gz", ".jsonl"))
        self._fundamentals = self._files("fundamentals", (".jsonl.gz", ".jsonl"))
        self.symbols = tuple(sorted(self._prices))

    def prices(self, symbol: str) -> SourceText:
        """Return the lines of ``prices/SYMBOL.csv``.

        Raises
        ------
        ConfigError
            If there is no such file or it cannot be read.
        """
        if symbol not in self._prices:
            raise unknown_symbol(symbol, self.symbols, f"folder {str(self._folder)!r} has no prices/{symbol}.csv")
        return self._read(self._prices[symbol])

    def news(self, symbol: str) -> SourceText | None:
        """Return the lines of ``news/SYMBOL.jsonl[.gz]``, None where there is no such file."""
        return self._read(self._news[symbol]) if symbol in self._news else None

    def fundamentals(self, symbol: str) -> SourceText | None:
        """Return the lines of ``fundamentals/SYMBOL.jsonl[.gz]``, None where there is no such file."""
        return self._read(self._fundamentals[symbol]) if symbol in self._fundamentals else None

    def _files(self, kind: str, endings: tuple[str, ...]) -> dict[str, Path]:
        """Return the files of a subfolder by symbol; of two for one symbol the last ending wins."""
        found: dict[str, Path] = {}
        try:
            paths = sorted((self._folder / kind).iterdir()) if (self._folder / kind).is_dir() else []
        except OSError as error:
            raise ConfigError(f"replay_dir: cannot list {str(self._folder / kind)!r}: {error.strerror}") from None
        for ending in endings:
            for path in paths:
                if not path.name.endswith(ending):
                    continue
                symbol = path.name.removesuffix(ending).upper()
                if _SYMBOL.match(symbol):
                    found[symbol] = path
                else:
                    logger.warning("%s: passed over, its name is not a ticker symbol", path)
        return found

    def _read(self, path: Path) -> SourceText:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"replay_dir: cannot read {str(path)!r}: {error.strerror}") from None
        content, fault = gunzip_readable(data) if path.name.endswith(".gz") else (data, None)
        lines = text_lines(content)
        if fault:
            lines = lines[:-1]  # the line at which the file broke off
        return SourceText(path.relative_to(self._folder).as_posix(), str(path), sha256_hex(data), lines, fault)


def text_lines(content: bytes) -> list[tuple[int, str]]:
    """Return the numbered lines of UTF-8 text; what is not UTF-8 is replaced, so that only its own line suffers."""
    text = content.decode("utf-8-sig", errors="replace")
    return [(number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), start=1)]


def gunzip_readable(data: bytes) -> tuple[bytes, str | None]:
    """Return what can be read of a gzip file, and why no more could, None where all of it was sound."""
    parts: list[bytes] = []
    rest = data
    while rest:
        member = zlib.decompressobj(wbits=31)
        position = 0
        try:
            while position < len(rest) and not member.eof:
                parts.append(member.decompress(rest[position : position + _CHUNK_BYTES]))
                position += _CHUNK_BYTES
        except zlib.error as error:
            return b"".join(parts), f"damaged gzip data ({error})"
        if not member.eof:
            return b"".join(parts), "the gzip data end early"
        rest = (member.unused_data + rest[position:]).lstrip(b"\0")
    return b"".join(parts), None if data else "the gzip file is empty"


def unknown_symbol(symbol: str, available: tuple[str, ...], what: str) -> ConfigError:
    """Return the error for a symbol that a source does not hold, with the nearest ones that it does."""
    hint = nearest(symbol, available)
    some = ", ".join(available[:8]) + (", ..." if len(available) > 8 else "")
    return ConfigError(f"streaming_symbols: {symbol}: {what}{hint} (available: {some})")
