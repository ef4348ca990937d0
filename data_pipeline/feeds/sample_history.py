"""The bundled sample: real daily bars that the package bokeh_sampledata carries, read without importing it or pandas.

AAPL, IBM and MSFT from 2000-03-01, GOOG from 2004-08-19, FB from 2012-05-18, all to 2013-03-01, prices as quoted on the
day; no news and no filings. The replay feed reads it under the name ``sample``.
"""

from __future__ import annotations

import gzip
import zlib
from importlib.util import find_spec
from pathlib import Path

from data_pipeline.feeds.replay_folder import SourceText, text_lines, unknown_symbol
from utils.errors import ConfigError
from utils.hashing import sha256_hex

FILE_NAME = "stocks.csv.gz"

ALIASES = {"GOOGL": "GOOG"}
"""Before April 2014 there was one listed class of Google shares, which traded as GOOG and is now GOOGL."""


class SampleHistory:
    """The sample history, a symbol at a time.

    Raises
    ------
    ConfigError
        If the package is not installed or its file cannot be read; names the remedy.
    """

    name = "sample"
    ex_close_factors = True
    generated = False

    def __init__(self) -> None:
        path = _sample_path()
        try:
            lines = text_lines(gzip.decompress(path.read_bytes()))
        except (OSError, EOFError, zlib.error) as error:
            raise ConfigError(
                f"replay_dir: cannot read the sample {path}: {error}; pip install --force-reinstall bokeh_sampledata"
            ) from None
        self._place = str(path)
        self._header, *rows = lines
        self._rows: dict[str, list[tuple[int, str]]] = {}
        for number, line in rows:
            ticker, found, _ = line.partition(",")
            if found:
                self._rows.setdefault(ticker.upper(), []).append((number, line))
        self.symbols = tuple(sorted(self._rows))

    def prices(self, symbol: str) -> SourceText:
        """Return the lines of a symbol, after the file's header.

        Raises
        ------
        ConfigError
            If the sample does not hold it.
        """
        ticker = ALIASES.get(symbol, symbol)
        if ticker not in self._rows:
            raise unknown_symbol(symbol, self.symbols, "the sample history does not hold it")
        lines = [self._header, *self._rows[ticker]]
        digest = sha256_hex("\n".join(line for _, line in lines))
        return SourceText(f"{FILE_NAME}#{ticker}", self._place, digest, lines)

    def news(self, symbol: str) -> SourceText | None:
        """Return None: the sample holds no news."""
        return None

    def fundamentals(self, symbol: str) -> SourceText | None:
        """Return None: the sample holds no filings."""
        return None


def _sample_path() -> Path:
    spec = find_spec("bokeh_sampledata")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "_data" / FILE_NAME
        if path.is_file():
            return path
    raise ConfigError(
        "replay_dir: the sample history needs the package bokeh_sampledata: pip install bokeh_sampledata "
        "(or give a folder of your own with prices/SYMBOL.csv)"
    )
