"""Chooses the feed that a configuration asks for. Called by whoever composes a run; opens nothing but that feed."""

from __future__ import annotations

from data_pipeline.feeds.base import MarketFeed
from data_pipeline.feeds.replay import SAMPLE, ReplayFeed
from data_pipeline.feeds.simulated import SimulatedFeed
from data_pipeline.simulation.settings import configured_scenario
from utils.errors import ConfigError
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry


def build_feed(config: OrchestratorConfig, telemetry: Telemetry = NO_TELEMETRY) -> MarketFeed:
    """Return the configured feed, loaded and validated.

    Raises
    ------
    ConfigError
        If the feed is one that this version does not stream, or its data cannot be used.
    """
    check_feed(config)
    if config.feed == "simulated":
        symbols = config.streaming_symbols if "streaming_symbols" in config.model_fields_set else None
        return SimulatedFeed(
            configured_scenario(config.simulation, symbols, config.random_state),
            config.replay_start,
            config.replay_end,
            config.feed_settings.calendar,
            config.replay_speed,
            telemetry,
        )
    return ReplayFeed(
        config.replay_dir,
        _symbols(config),
        config.replay_start,
        config.replay_end,
        config.feed_settings.calendar,
        config.replay_speed,
        telemetry,
    )


def check_feed(config: OrchestratorConfig) -> None:
    """Refuse a feed that this version does not stream, before anything is opened.

    Raises
    ------
    ConfigError
        Naming the feed and the remedy.
    """
    keyed = [name for name in ("finnhub", "polygon") if getattr(config, f"{name}_api_key") is not None]
    if config.feed in ("finnhub", "polygon") or (config.feed == "auto" and keyed):
        asked = config.feed if config.feed != "auto" else f"auto with a key of {' and '.join(keyed)}"
        raise ConfigError(
            f"feed: {asked}: this version streams replayed and simulated history only; use --feed replay or --feed simulated"
        )


def _symbols(config: OrchestratorConfig) -> tuple[str, ...] | None:
    """Return the symbols to stream; a folder given without any is taken whole."""
    if config.replay_dir != SAMPLE and "streaming_symbols" not in config.model_fields_set:
        return None
    return config.streaming_symbols
