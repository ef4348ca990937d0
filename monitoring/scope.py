"""What this version offers of what is documented: the rest is refused at the start, in a sentence, rather than pretended.

Asked once by the orchestrator and by ``--check_config``; every choice that becomes possible leaves this file.
"""

from __future__ import annotations

from agents.factory import check_plug_ins
from data_pipeline.embedder_factory import check_embedder
from data_pipeline.feeds.factory import check_feed
from judge.configured_panel import judge_configs
from training.pipelines.trigger import check_hyper_parameters
from utils.errors import ConfigError
from utils.settings import OrchestratorConfig


def refuse_what_is_not_there(config: OrchestratorConfig) -> None:
    """Say plainly which documented choices this version does not offer yet, rather than pretend.

    Raises
    ------
    ConfigError
        For the first such choice.
    """
    check_plug_ins(config)
    judge_configs(config)
    check_feed(config)
    check_embedder(config.embeddings)
    check_hyper_parameters(config)
    if config.exit_when_done and not config.enable_streaming:
        raise ConfigError(
            "exit_when_done: nothing is ever done without streaming; add --enable_streaming or leave it out"
        )
    if config.decision.cadence != "daily_close":
        raise ConfigError(
            f"decision.cadence: {config.decision.cadence!r} needs a live feed; a replay of daily bars decides at daily_close"
        )
    _ = config.decision.horizon_sessions  # raises for a horizon in minutes
    if config.history_dir is not None:
        raise ConfigError("history_dir: a replay warms up from its own folder; leave it out")
    if config.record is not None:
        raise ConfigError("record: there is nothing to record in a replay; leave it out")
