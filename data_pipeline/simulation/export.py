"""Stores a simulated market as a replay folder, with the truth about it beside: expected returns, switch points, scenario.

``python -m data_pipeline.simulation`` calls it. The files that a replay reads are, byte for byte, what the simulated feed
reads from memory; a replay never opens the others.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from data_pipeline.simulation.generator import SimulatedMarket
from data_pipeline.simulation.history import SimulatedHistory, written
from utils.artifacts import write_atomically
from utils.errors import ConfigError


def export(market: SimulatedMarket, folder: Path) -> None:
    """Write a market.

    Parameters
    ----------
    market : SimulatedMarket
    folder : Path
        Must not exist, or be empty. Gets ``prices/``, ``news/``, ``fundamentals/``; ``expected/SYMBOL.csv`` with
        ``Date,ExpectedReturn`` (fraction, from the next open to the close of the horizon), ``change_points.csv`` with
        ``Date,From,To``, and ``scenario.yaml``, from which the same market can be made again.

    Raises
    ------
    ConfigError
        If the folder holds anything or cannot be written.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"output: {folder} is not an empty folder; give one that is, or a new one")
        history = SimulatedHistory(market)
        for symbol in market.scenario.symbols:
            for text in (history.prices(symbol), history.news(symbol), history.fundamentals(symbol)):
                _write(folder / text.name, written(text))
            rows = [f"{session},{market.expected_return(symbol, session):.10f}" for session in market.sessions]
            _write(folder / "expected" / f"{symbol}.csv", "\n".join(["Date,ExpectedReturn", *rows, ""]))
        switches = [f"{point.session},{point.old},{point.new}" for point in market.change_points()]
        _write(folder / "change_points.csv", "\n".join(["Date,From,To", *switches, ""]))
        content = yaml.safe_dump(market.scenario.model_dump(mode="json"), sort_keys=False)
        _write(folder / "scenario.yaml", content)
    except OSError as error:
        raise ConfigError(f"output: cannot write {folder}: {error.strerror}") from None


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
