"""Runs workflows: asks the agents that may start, at the same time where they wait on servers, until nothing is left.

The coordinator hands it all symbols of an instant together, notebooks call `execute_workflow` for one. It owns a bounded
pool of threads and the deadlines; what is asked next, `WorkflowRun` decides.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pydantic import ValidationError

from orchestration.rewrite_actions import WorkflowAction
from orchestration.rewrite_rules import RewriteRule, default_rules, start_unsparable
from orchestration.workflow_graph import WorkflowGraph
from orchestration.workflow_run import StepCall, WorkflowRun
from orchestration.workflow_state import WorkflowState
from utils.errors import ConfigError, LibraryUnavailable, LookAheadError
from utils.llm.worker_pool import WorkerPool
from utils.logs import logger
from utils.schema import AgentOutput
from utils.setting_sections import WorkflowSettings, explained
from utils.telemetry import NO_TELEMETRY, Telemetry

__all__ = ["DynamicWorkflowManager", "RewriteRule", "StepCaller", "WorkflowAction", "WorkflowState"]

MAX_WORKERS = 16
_STOPPING = (LookAheadError, ConfigError, LibraryUnavailable)
"""Faults that are no agent's own; they end the decision."""

Answer = AgentOutput | Exception


class StepCaller(Protocol):
    """Knows the agents. `prepare` and `late` are called by the driving thread alone, `ask` also by threads of the pool.

    Failure contract: whatever `ask` or `late` raise is recorded as the agent's failure and the run goes on, but for a
    wrong configuration, a look-ahead and a library that is away.
    """

    def waits(self, agent: str) -> bool:
        """Return whether an agent's answers come from a server, so that its calls are made apart and at the same time."""
        ...

    def deadline_s(self, agent: str) -> float:
        """Return how long one call of a waiting agent may take, in seconds of wall time."""
        ...

    def prepare(self, index: int, call: StepCall) -> Any:
        """Return the question behind the call of run `index`."""
        ...

    def ask(self, agent: str, questions: Sequence[Any]) -> Sequence[AgentOutput]:
        """Return one output a question, in order."""
        ...

    def late(self, agent: str, question: Any) -> AgentOutput:
        """Return an answer in place of one that did not come in time, or raise."""
        ...


@dataclass(slots=True)
class _Asked:
    """A call that has been made: `number` counts them all. Times are the timer's, None before a thread has taken it up."""

    number: int
    index: int
    call: StepCall
    question: Any
    submitted: float
    started: float | None = None
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class _Answered:
    """A call with what came of it."""

    asked: _Asked
    answer: Answer
    latency_ms: float
    note: str = ""

    @property
    def order(self) -> tuple[float, int]:
        """Sorts answers by the end of their calls on the critical path, equal ends by the order of the questions."""
        return self.asked.call.started_ms + self.latency_ms, self.asked.number


class DynamicWorkflowManager:
    """Runs workflows by rules.

    Parameters
    ----------
    config : WorkflowSettings or mapping, optional
        Thresholds, latency budget and mode.
    timer : callable or None
        Seconds on a monotonic wall clock: latencies are measured with it. None takes those that outputs declare
        (`latency_s`), as a replay must, so that nothing in it depends on wall time.
    max_workers : int
        Calls in flight at the same time.

    Raises
    ------
    ConfigError
        If the configuration has an unknown key or a value out of range.
    """

    def __init__(
        self,
        config: WorkflowSettings | Mapping[str, Any] | None = None,
        *,
        timer: Callable[[], float] | None = time.perf_counter,
        max_workers: int = MAX_WORKERS,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        try:
            self.settings = config if isinstance(config, WorkflowSettings) else WorkflowSettings(**(config or {}))
        except ValidationError as error:
            text = "; ".join(f"workflow.{explained(item)}" for item in error.errors(include_url=False))
            raise ConfigError(text) from None
        self._timer = timer
        self._max_workers = max_workers
        self._telemetry = telemetry
        self._rules = list(default_rules(self.settings))
        self._arrange()
        self._pool: WorkerPool | None = None
        self._lock = threading.Lock()

    @property
    def rules(self) -> tuple[RewriteRule, ...]:
        """The rules in the order in which they are evaluated."""
        return tuple(self._rules)

    def add_rule(self, rule: RewriteRule) -> None:
        """Add a rule to all runs that begin from now on.

        Raises
        ------
        ConfigError
            If there is a rule of that name.
        """
        if any(known.name == rule.name for known in self._rules):
            raise ConfigError(f"rule: there is already one named {rule.name!r}; give it another name")
        self._rules.append(rule)
        self._arrange()

    def _arrange(self) -> None:
        self._rules.sort(key=lambda known: -known.priority)
        eager = [*self._rules, start_unsparable(self.settings)]
        self._with_eager = tuple(sorted(eager, key=lambda known: -known.priority))

    def begin(
        self,
        graph: WorkflowGraph,
        variation: Callable[[str], str | None] | None = None,
        about: Mapping[str, Any] | None = None,
        *,
        eager: bool = False,
    ) -> WorkflowRun:
        """Return a run of a graph, to be driven; parameters as in `WorkflowRun`.

        `eager` adds the rule that starts agents which nothing can spare any more, see `start_unsparable`.
        """
        rules = self._with_eager if eager else self.rules
        return WorkflowRun(graph, rules, self.settings.max_latency_ms, variation=variation, about=about)

    def execute_workflow(
        self,
        initial_agents: Sequence[str] | WorkflowGraph,
        context: Mapping[str, Any],
        agents: Mapping[str, Any],
    ) -> tuple[dict[str, AgentOutput], WorkflowState]:
        """Run one workflow to its end.

        Parameters
        ----------
        initial_agents : sequence of str or WorkflowGraph
            Whom to ask; names are arranged by the mode.
        context : mapping
            What the agents are told. An `Agent` needs ``snapshot`` (a `MarketSnapshot`); the validator reads volatility,
            trend_strength and news_impact from it where there is no snapshot. ``timeout_s`` is the deadline of one call.
        agents : mapping of str to Agent or callable
            A callable is handed the context with ``agent_outputs`` so far and, in a retry, ``retry`` and twice the
            ``lookback_days``; it returns an output, or what `parse_output` makes one of. It may be called from any thread.
            A validator is there without being named.

        Returns
        -------
        outputs : dict of str to AgentOutput
        state : WorkflowState

        Raises
        ------
        ConfigError
            If an initial agent is missing in `agents`, or the graph is none.
        """
        from orchestration.single_workflow import SingleCaller

        if isinstance(initial_agents, WorkflowGraph):
            graph = initial_agents
        else:
            graph = WorkflowGraph.routed(initial_agents, self.settings.mode)
        caller = SingleCaller(context, agents)
        caller.require(graph.agents)
        run = self.begin(graph, caller.variation)
        caller.run = run
        self.drive([run], caller)
        return dict(run.outputs), run.state

    def drive(self, runs: Sequence[WorkflowRun], caller: StepCaller) -> None:
        """Run all workflows to their end; agents that compute are asked once a round about all that are ready."""
        before = [len(run.rewrites) for run in runs]
        flying: dict[Future[Answer], _Asked] = {}
        count = 0
        changed: Iterable[int] = range(len(runs))
        while True:
            batches: dict[str, list[_Asked]] = {}
            for index in changed:
                run = runs[index]
                for call in run.ready():
                    asked = _Asked(count, index, call, caller.prepare(index, call), self._now())
                    count += 1
                    run.start(call)
                    if caller.waits(call.agent):
                        flying[self._workers().submit(partial(self._fly, caller, asked))] = asked
                    else:
                        batches.setdefault(call.agent, []).append(asked)
            answers = [item for agent, batch in batches.items() for item in self._batch(caller, agent, batch)]
            if not answers and not flying:
                break
            if not answers or self._timer is None:
                answers += self._landed(caller, flying)
            for item in sorted(answers, key=lambda answered: answered.order):
                if isinstance(item.answer, Exception):
                    self._telemetry.count("agent_errors_total", agent_type=item.asked.call.agent, error_type="failed")
                runs[item.asked.index].record(item.asked.call, item.answer, item.latency_ms, item.note)
            # only an answer makes new calls ready
            changed = sorted({item.asked.index for item in answers if not runs[item.asked.index].finished})
        for run, known in zip(runs, before, strict=True):
            for rewrite in run.rewrites[known:]:
                self._telemetry.count("workflow_rewrites_total", rule=rewrite.rule)

    def close(self) -> None:
        """Let the threads end; a call that hangs is left behind, and keeps neither this nor the process from ending."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _now(self) -> float:
        return (self._timer or time.perf_counter)()

    def _workers(self) -> WorkerPool:
        with self._lock:
            if self._pool is None:
                self._pool = WorkerPool(self._max_workers, "workflow")
                # whoever forgets to close leaves no idle threads behind
                weakref.finalize(self, self._pool.close).atexit = False
            return self._pool

    def _latency_ms(self, answer: Answer, measured_s: float) -> float:
        declared_s = 0.0 if isinstance(answer, Exception) else answer.latency_s
        # an answer that was found and not asked for takes no time again, but it did
        return 1000 * (declared_s if self._timer is None else max(measured_s, declared_s))

    def _batch(self, caller: StepCaller, agent: str, batch: Sequence[_Asked]) -> list[_Answered]:
        """Ask a computing agent about all that are ready; each of them waits for the whole batch."""
        started = self._now()
        questions = [asked.question for asked in batch]
        answers = _asked(caller, agent, questions)
        if len(batch) > 1 and isinstance(answers[0], Exception):
            # one question may have spoilt it for all
            answers = [_asked(caller, agent, [question])[0] for question in questions]
        spent = self._now() - started
        return [
            _Answered(asked, answer, self._latency_ms(answer, spent))
            for asked, answer in zip(batch, answers, strict=True)
        ]

    def _fly(self, caller: StepCaller, asked: _Asked) -> Answer:
        asked.started = self._now()
        answer = _asked(caller, asked.call.agent, [asked.question])[0]
        asked.ended = self._now()
        return answer

    def _landed(self, caller: StepCaller, flying: dict[Future[Answer], _Asked]) -> list[_Answered]:
        """Wait for calls in the pool: live for the first, in a replay for all, so that their order makes no difference."""
        found: list[_Answered] = []
        while flying and (not found or self._timer is None):
            now = self._now()
            patience = min(self._left_s(caller, asked, now) for asked in flying.values())
            wait(flying, max(0.0, patience), FIRST_COMPLETED)
            now = self._now()
            for future, asked in list(flying.items()):
                if future.done():
                    answer: Answer = future.result()
                    note, ended = "", asked.ended or now
                elif self._left_s(caller, asked, now) <= 0:
                    self._workers().abandon(future)
                    answer, note, ended = self._given_up(caller, asked)
                else:
                    continue
                del flying[future]
                found.append(_Answered(asked, answer, self._latency_ms(answer, ended - asked.submitted), note))
        return found

    def _left_s(self, caller: StepCaller, asked: _Asked, now: float) -> float:
        """Return the seconds that a call still has; while it queues for a thread its time does not run."""
        return caller.deadline_s(asked.call.agent) - (now - asked.started if asked.started is not None else 0.0)

    def _given_up(self, caller: StepCaller, asked: _Asked) -> tuple[Answer, str, float]:
        agent = asked.call.agent
        note = f"no answer within {caller.deadline_s(agent):g} s"
        try:
            return caller.late(agent, asked.question), f"{note}; answered by rules", self._now()
        except Exception as error:  # no fallback, or one that fails: the agent's failure either way
            _stop_on(error)
            return TimeoutError(note), "", self._now()


def _asked(caller: StepCaller, agent: str, questions: Sequence[Any]) -> list[Answer]:
    """Return one answer a question; where the agent fails, its fault for each."""
    try:
        answers: list[object] = list(caller.ask(agent, questions))
        if len(answers) != len(questions):
            raise ValueError(f"{len(answers)} answers to {len(questions)} questions")
    except Exception as error:  # models and vendor SDKs raise anything; the run goes on without this agent
        _stop_on(error)
        if len(questions) == 1:
            logger.warning("%s failed: %s: %s", agent, type(error).__name__, error)
        return [error] * len(questions)
    return [_output_or_fault(answer) for answer in answers]


def _output_or_fault(answer: object) -> Answer:
    if isinstance(answer, AgentOutput):
        return answer
    return TypeError(f"the answer is a {type(answer).__name__}, not an AgentOutput")


def _stop_on(error: Exception) -> None:
    if isinstance(error, _STOPPING):
        raise error
