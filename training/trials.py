"""Trials of model versions: a challenger in shadow before it serves, a champion watched for as long as it does.

`OnlineLearningLoop` calls `check` at every instant, so that a version moves within one instant of the evidence. All that is
decided on stands in the database, aliases included: a restart, or a move by hand from another process, is noticed. It
moves aliases and asks for the alignment of what serves; it loads nothing and trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import psycopg

from data_pipeline.experience_library_postgres import ExperienceLibraryPostgres
from data_pipeline.library import shadow_pairs
from data_pipeline.library.shadow_pairs import FatalTally, PairFilter
from training.live_trial import (
    FATAL_RATIO,
    LATENCY_LIMIT_S,
    MAX_SILENT_SESSIONS,
    LiveTrial,
    challenger_verdict,
    deviation_of,
    too_many_fatal,
    too_silent,
    too_slow,
)
from training.model_registry import AliasEvent, Held, Holders, ModelRegistry
from training.trial_evidence import Subject, session_differences
from utils.clock import isoformat
from utils.logs import logger
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry


@dataclass(frozen=True, slots=True)
class LoadFault:
    """Why a version could not be loaded, in words, and whether that lies in the version, so that waiting does not help."""

    reason: str
    lasting: bool


class Serving(Protocol):
    """What puts versions into service. Failure contract: a version that cannot be loaded is said and never raised."""

    def align(self, agent_type: str) -> None:
        """Let what serves an agent, and what answers in its shadow, be what the aliases say; idempotent."""
        ...

    def counterpart(self, agent_type: str, previous: str | None) -> str:
        """Return the name of the policy that answers beside a champion with this predecessor, as of the last alignment."""
        ...

    def load_fault(self, agent_type: str, version: str) -> LoadFault | None:
        """Return why a version could not be loaded at the last alignment, None where it was, or was not asked for."""
        ...

    def latencies_s(self, agent_type: str, policy: str) -> Sequence[float]:
        """Return the seconds of a policy's last answers; live only, else there are none."""
        ...


class NothingServed:
    """`Serving` of a loop on its own: there is no daemon whose agents could be served."""

    def align(self, agent_type: str) -> None:
        """Do nothing."""

    def counterpart(self, agent_type: str, previous: str | None) -> str:
        """Return the predecessor, or the rules."""
        return "rules" if previous is None else f"local:{previous}"

    def load_fault(self, agent_type: str, version: str) -> LoadFault | None:
        """Return None: nothing is loaded."""
        return None

    def latencies_s(self, agent_type: str, policy: str) -> Sequence[float]:
        """Return nothing."""
        return ()


@dataclass(slots=True)
class _Fold:
    """What has been read of one version's live decisions, up to where."""

    chosen: PairFilter
    trial: LiveTrial
    matured: datetime | None = None
    decided: datetime | None = None
    silent: int = 0  # sessions with decisions since it last said anything
    fatal: int = 0
    fatal_of_reference: int = 0


@dataclass(slots=True)
class _Agent:
    """What is known of an agent's versions since the last check."""

    holders: Holders = field(default_factory=dict)
    challenger: _Fold | None = None
    watch: _Fold | None = None
    last_move: AliasEvent | None = None


class Trials:
    """Challengers and champions of one run.

    Parameters
    ----------
    library : ExperienceLibraryPostgres
    settings : OrchestratorConfig
        Its `learning` section: how long a trial is, how rare false alarms are; and the horizon and costs of outcomes.
    serving : Serving
    """

    def __init__(
        self,
        library: ExperienceLibraryPostgres,
        settings: OrchestratorConfig,
        serving: Serving,
        *,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._library = library
        self._registry = ModelRegistry(library)
        self._learning = settings.learning
        self._horizon = settings.decision.horizon_sessions
        self._round_trip = 2 * settings.execution.one_way_cost
        self._serving = serving
        self._telemetry = telemetry
        self._agents: dict[str, _Agent] = {}

    def align(self, *, again: bool = False) -> None:
        """Have every agent whose aliases have moved since they were last looked at served as they say.

        Parameters
        ----------
        again : bool
            The others too: what could not be loaded the last time may be there now.
        """
        with self._library.connection() as connection, connection.cursor() as cursor:
            found = self._registry.holders(cursor)
        for agent_type in sorted({*found, *self._agents}):
            holders = found.get(agent_type, {})
            known = self._agents.get(agent_type)
            if known is not None and _names(known.holders) == _names(holders) and not again:
                continue
            self._serving.align(agent_type)
            state = self._known(agent_type, holders, self._registry.events(agent_type), known)
            self._agents = {**self._agents, agent_type: state}  # in one step: other threads read it

    def check(self, at: datetime) -> None:
        """Take in what has become known by an instant, and move the versions that it speaks for or against."""
        self.align()
        for agent_type in list(self._agents):
            # to the end: a check that a kill cut off after its first move is repeated, and must lead to the same
            while self._moves_one(agent_type, at):
                continue

    def _moves_one(self, agent_type: str, at: datetime) -> bool:
        """Take in what is known of an agent's versions; return whether that has moved one of them."""
        known = self._agents[agent_type]
        with self._library.connection() as connection, connection.cursor() as cursor:
            for fold in (known.watch, known.challenger):
                if fold is not None:
                    self._read(cursor, fold, at)
        self._show(agent_type, known)
        fallen = self._fallen(agent_type, known)
        if fallen is not None:
            return self._withdraw(agent_type, known, at, fallen)
        verdict = self._verdict(agent_type, known)
        return verdict is not None and self._conclude(agent_type, known, at, *verdict)

    def _verdict(self, agent_type: str, known: _Agent) -> tuple[bool, str] | None:
        """Return whether the challenger is promoted, and why; None without one, and while its trial is not over."""
        held, fold, needed = known.holders.get("challenger"), known.challenger, self._learning
        if held is None or fold is None:
            return None
        fault = self._serving.load_fault(agent_type, held.model.version)
        if fault is not None and fault.lasting:
            return False, _cause(fault)
        verdict = challenger_verdict(fold.trial, needed.shadow_decisions, needed.shadow_sessions)
        if verdict is None and (reason := too_silent(fold.silent, _cause(fault))) is not None:
            return False, reason
        return verdict

    def waiting(self, agent_type: str) -> str | None:
        """Return why an agent's trainings wait, in words: while a challenger is on trial another would only replace it."""
        held = self._registry.held_by(agent_type).get("challenger")
        if held is None:
            return None
        known = self._agents.get(agent_type)
        fold = known.challenger if known is not None and known.holders.get("challenger") == held else None
        done, seen = (fold.trial.decisions, fold.trial.sessions) if fold else (0, 0)
        needed = self._learning
        progress = (
            f"{held.model.version} is in its shadow stage: {done} of {needed.shadow_decisions} decisions, "
            f"{seen} of {needed.shadow_sessions} sessions"
        )
        fault = self._serving.load_fault(agent_type, held.model.version)
        silent = fold.silent if fold else 0
        if fault is None and not silent:
            return progress
        return (
            f"{progress}; no answer in the last {silent} sessions, {MAX_SILENT_SESSIONS} end the trial: {_cause(fault)}"
        )

    def snapshot(self) -> list[dict[str, Any]]:
        """Return where every agent with a version stands, as of the last check, as JSON values."""
        return [self._described(name, known) for name, known in sorted(self._agents.items())]

    def _known(self, agent_type: str, holders: Holders, moves: Sequence[AliasEvent], before: _Agent | None) -> _Agent:
        """Return an agent's state for new aliases; a trial that they leave alone goes on where it was."""
        known = _Agent(holders, last_move=moves[-1] if moves else None)
        challenger, champion, previous = (holders.get(a) for a in ("challenger", "champion", "previous"))
        if challenger is not None:
            # beside what serves now, be it no version: what it was better than before says nothing of that
            served_since = [move.as_of for move in moves if move.alias == "champion"][-1:]
            since = max([challenger.since, *served_since])
            chosen = self._filter(agent_type, None, _policy(challenger), since)
            known.challenger = self._fold(chosen, challenger, before.challenger if before else None)
        if champion is not None:
            counterpart = self._serving.counterpart(agent_type, _versions(previous))
            chosen = self._filter(agent_type, _policy(champion), counterpart, champion.since)
            known.watch = self._fold(chosen, champion, before.watch if before else None)
        return known

    def _filter(self, agent_type: str, serving: str | None, shadow: str, since: datetime) -> PairFilter:
        return PairFilter(self._library.run_id, agent_type, serving, shadow, since)

    def _fold(self, chosen: PairFilter, held: Held, before: _Fold | None) -> _Fold:
        if before is not None and before.chosen == chosen:
            return before
        return _Fold(chosen, LiveTrial(deviation_of(held.model.gate), self._learning.false_alarm_years))

    def _read(self, cursor: psycopg.Cursor[Any], fold: _Fold, at: datetime) -> None:
        """Take in the pairs that have matured, and the fatal findings of those that were decided, since the last time."""
        subject: Subject = "shadow" if fold.chosen.serving is None else "serving"
        pairs = list(shadow_pairs.settled(cursor, fold.chosen, fold.matured, at))
        for found in session_differences(
            pairs, subject, horizon_sessions=self._horizon, round_trip_cost=self._round_trip
        ):
            fold.trial.add(found)
        if pairs:
            fold.matured = pairs[-1].matured_at
        if subject == "shadow":
            fold.silent = shadow_pairs.silent_sessions(cursor, fold.chosen, at)
        else:
            tally: FatalTally = shadow_pairs.fatal_findings(cursor, fold.chosen, fold.decided, at)
            fold.fatal += tally.serving
            fold.fatal_of_reference += tally.shadow
            fold.decided = tally.newest or fold.decided

    def _fallen(self, agent_type: str, known: _Agent) -> str | None:
        """Return why the champion is withdrawn, in words; None if it is not."""
        fold = known.watch
        if fold is None:
            return None
        assert fold.chosen.serving is not None
        reference = fold.chosen.shadow.removeprefix("local:")
        if fold.trial.alarmed_on is not None:
            return f"it does worse than {reference}: {fold.trial.in_words}"
        if too_many_fatal(fold.fatal, fold.fatal_of_reference):
            return (
                f"fatal findings in {fold.fatal} of its outputs, in {fold.fatal_of_reference} of {reference}'s to the same "
                f"questions: more than {FATAL_RATIO:g} times as many"
            )
        slow = too_slow(list(self._serving.latencies_s(agent_type, fold.chosen.serving)))
        if slow is not None:
            return f"95 % of its last answers took up to {slow * 1000:.0f} ms; the limit is {LATENCY_LIMIT_S * 1000:.0f} ms"
        return None

    def _withdraw(self, agent_type: str, known: _Agent, at: datetime, reason: str) -> bool:
        previous = known.holders.get("previous")
        fault = None if previous is None else self._serving.load_fault(agent_type, previous.model.version)
        lost = fault if fault is not None and fault.lasting else None
        if lost is not None:
            reason = f"{reason}; {_versions(previous)}, the version before, cannot serve again: {lost.reason}"

        def move(cursor: psycopg.Cursor[Any]) -> str:
            heir = self._registry.withdraw(cursor, agent_type, at, reason, to_previous=lost is None)
            return heir.version if heir is not None else "the configured policy"

        heir = self._moved(agent_type, known.holders, move)
        if heir is None:
            return False
        self._telemetry.count("model_rollbacks_total", agent_type=agent_type)
        fallen = known.holders["champion"].model.version
        logger.warning("ROLLBACK: %s is withdrawn, %s serves the %s agent again: %s", fallen, heir, agent_type, reason)
        self.align()
        return True

    def _conclude(self, agent_type: str, known: _Agent, at: datetime, promoted: bool, reason: str) -> bool:
        model = known.holders["challenger"].model

        def move(cursor: psycopg.Cursor[Any]) -> str:
            act = self._registry.promote if promoted else self._registry.turn_down
            act(cursor, model, at, reason)
            return model.version

        if self._moved(agent_type, known.holders, move) is None:
            return False
        self._telemetry.count("model_promotions_total" if promoted else "model_rejections_total", agent_type=agent_type)
        if promoted:
            logger.info("%s has passed its shadow stage and serves the %s agent: %s", model.version, agent_type, reason)
        else:
            logger.warning("%s is turned down after its shadow stage: %s", model.version, reason)
        self.align()
        return True

    def _moved(self, agent_type: str, expected: Holders, move: Callable[[psycopg.Cursor[Any]], str]) -> str | None:
        """Move aliases in one transaction, unless somebody else has moved them meanwhile: then the next check looks anew."""
        with self._library.connection() as connection, connection.cursor() as cursor:
            self._registry.lock(cursor, agent_type)
            holders = self._registry.holders(cursor, agent_type).get(agent_type, {})
            return move(cursor) if _names(holders) == _names(expected) else None

    def _show(self, agent_type: str, known: _Agent) -> None:
        for role, fold in (("champion", known.watch), ("challenger", known.challenger)):
            share = 0.0 if fold is None else fold.trial.share
            self._telemetry.gauge("model_trial_alarm_ratio", share, agent_type=agent_type, role=role)

    def _described(self, agent_type: str, known: _Agent) -> dict[str, Any]:
        held = known.holders
        move = known.last_move
        return {
            "agent_type": agent_type,
            "champion": _versions(held.get("champion")),
            "champion_trial": _progress(known.watch),
            "challenger": _versions(held.get("challenger")),
            "challenger_trial": _progress(known.challenger),
            "needed": {
                "decisions": self._learning.shadow_decisions,
                "sessions": self._learning.shadow_sessions,
            },
            "previous": _versions(held.get("previous")),
            "last_move": move
            and {
                "as_of": isoformat(move.as_of),
                "alias": move.alias,
                "from": move.old_version,
                "to": move.new_version,
                "reason": move.reason,
            },
        }


def _cause(fault: LoadFault | None) -> str:
    """Return why a challenger says nothing, as far as it is known here."""
    if fault is None:
        return "its answers fail, or nobody asks it (the log has the reasons)"
    return f"it cannot be loaded: {fault.reason}"


def _policy(held: Held) -> str:
    """Return the name under which a version answers."""
    return f"local:{held.model.version}"


def _names(holders: Holders) -> dict[str, tuple[str, datetime]]:
    return {alias: (held.model.version, held.since) for alias, held in holders.items()}


def _versions(held: Held | None) -> str | None:
    return None if held is None else held.model.version


def _progress(fold: _Fold | None) -> dict[str, Any] | None:
    if fold is None:
        return None
    trial = fold.trial
    return {
        "against": "what serves" if fold.chosen.serving is None else fold.chosen.shadow,
        "since": isoformat(fold.chosen.decided_after),
        "decisions": trial.decisions,
        "sessions": trial.sessions,
        "mean_difference": trial.mean,
        "deviation": trial.deviation,
        "alarm_ratio": trial.share,
        "fatal": fold.fatal,
        "fatal_of_reference": fold.fatal_of_reference,
    }
