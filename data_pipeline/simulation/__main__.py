"""The command that stores a simulated market as a replay folder: ``python -m data_pipeline.simulation --output DIR``.

Says what was planted and what the best possible policy earns on it; never a traceback for a wrong setting.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path

from pydantic import ValidationError

from data_pipeline.simulation.export import export
from data_pipeline.simulation.generator import SimulatedMarket, generate
from data_pipeline.simulation.oracle import Estimate
from data_pipeline.simulation.scenario import Scenario, generated_symbols
from data_pipeline.simulation.settings import configured_scenario
from utils.errors import ConfigError
from utils.logs import complain, configure_logging
from utils.setting_sections import SimulationSettings, explained


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0 done, 2 wrong setting."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.simulation", description=__doc__.splitlines()[0])
    parser.add_argument("--output", metavar="DIR", required=True, type=Path, help="new or empty folder")
    parser.add_argument("--scenario", metavar="FILE", type=Path, help="YAML file with the fields of a scenario")
    parser.add_argument("--seed", metavar="N", type=int, help="of every draw; default 42")
    parser.add_argument("--sessions", metavar="N", type=int, help="sessions to generate; default 500")
    parser.add_argument("--start", metavar="DATE", help="the first session is the first from here; default 2005-01-03")
    parser.add_argument("--symbols", metavar="SYM", nargs="+", help="tickers, or how many to make up; default 8")
    parser.add_argument(
        "--edge_bps", metavar="BPS", type=float, help="one edge for every agent in every regime; 0 for none"
    )
    parser.add_argument("--shuffled", action="store_true", help="no signal says anything about what is planted")
    options = parser.parse_args(arguments)
    configure_logging()
    try:
        market = generate(_scenario(options))
        export(market, options.output)
        sys.stdout.write(_described(market, options.output))
    except ConfigError as error:
        return complain(error, 2)
    return 0


def _scenario(options: argparse.Namespace) -> Scenario:
    symbols = options.symbols
    if symbols and len(symbols) == 1 and symbols[0].isdigit():
        symbols = generated_symbols(int(symbols[0]))
    try:
        settings = SimulationSettings(
            scenario=options.scenario,
            seed=options.seed,
            sessions=options.sessions,
            symbols=symbols,
            edge_bps=options.edge_bps,
        )
    except ValidationError as error:
        raise ConfigError("; ".join(explained(item) for item in error.errors(include_url=False))) from None
    changes: dict[str, object] = {"shuffled": True} if options.shuffled else {}
    if options.start is not None:
        try:
            changes["start"] = date.fromisoformat(options.start)
        except ValueError:
            raise ConfigError(f"start: {options.start!r} is not a date of the form 2014-01-31") from None
    return configured_scenario(settings).replaced(**changes)


def _described(market: SimulatedMarket, folder: Path) -> str:
    scenario = market.scenario
    oracle = scenario.oracle()
    lines = [
        f"{folder}: {len(scenario.symbols)} symbols, {market.sessions[0]} to {market.sessions[-1]}, generated data",
        f"  regime switches      {len(market.change_points())}",
    ]
    for agent, by_regime in scenario.edges.items():
        stated = ", ".join(f"{name} {edge:g}" for name, edge in by_regime.items())
        lines.append(
            f"  edge {agent:<15} {stated} bp a decision over {scenario.horizon_sessions} sessions, before costs"
        )
    if scenario.shuffled:
        lines.append("  shuffled             the signals say nothing: whoever acts on them earns nothing before costs")
    lines += [
        f"  best possible policy right in {_share(oracle.accuracy)} of horizons, against the market in {_share(oracle.relative_accuracy)}",
        f"                       net return a decision {_basis_points(oracle.net_return)}, reward {_figure(oracle.reward)}",
    ]
    return "\n".join(lines) + "\n"


def _share(found: Estimate) -> str:
    return f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"


def _basis_points(found: Estimate) -> str:
    return f"{1e4 * found.value:.1f} [{1e4 * found.low:.1f}, {1e4 * found.high:.1f}] bp"


def _figure(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
