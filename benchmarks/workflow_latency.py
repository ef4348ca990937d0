"""What the dynamic workflow saves with agents behind a model server: wall time, calls, and what becomes of the decisions.

Two parts of the section ``workflow``. Over sockets it measures wall time with hosted agents on a fake server; with declared
latencies it counts calls and rewards over thousands of decisions. Both skip, and say so, without a replay folder.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from agents.base_agent import Agent, narrowed
from agents.factory import build_agents, hosted_policy
from agents.policies.base import Policy, PolicyRequest
from agents.policies.hosted_model import HostedModelPolicy
from benchmarks.fake_models import VENDORS
from benchmarks.judges import fake_servers
from benchmarks.measure import Spread, percentile, resampled
from benchmarks.workflow_arms import (
    ARMS,
    LATENCY_S,
    Session,
    coordinator_of,
    declared_agents,
    latency_s,
    opinion,
    question_key,
    sessions,
)
from evaluation.bootstrap import paired_difference
from judge.llm_judge import LLMJudge
from judge.multi_judge_consensus import MultiJudgeConsensus
from judge.reward_calculator import RewardCalculator
from orchestration.analysis import Analysis
from orchestration.coordinator import Coordinator
from orchestration.decision_steps import OpenCase
from orchestration.execution.outcomes import OutcomeTracker
from orchestration.execution.portfolio import Portfolio
from orchestration.records import open_decision, trajectory_ids
from utils.llm.base import ChatModel
from utils.llm.factory import ChatModels
from utils.schema import AgentOutput, AgentType
from utils.settings import OrchestratorConfig

AIM_SAVED = 0.33
AIM_OWN_CPU_MS = 30.0
WALL_SYMBOLS = ("AAPL", "AMZN", "GOOG", "CSCO", "MSFT", "PFE", "T", "WMT")
WALL_PERIOD = (date(2014, 10, 1), date(2014, 11, 28))
WALL_DECISIONS = 100
DECLARED_PERIOD = (date(2014, 10, 1), date(2015, 1, 30))
HOSTED_DECISIONS = 20
HORIZON = 5
ONE_WAY_COST = 8e-4
SEED = 42
_TESTS = Path(__file__).resolve().parent.parent / "tests"


def behind_a_server() -> dict[str, Any]:
    """Wall time of a decision over sockets, the same decisions three ways at the same time."""
    folder = os.environ.get("REPLAY_DATA_DIR")
    if not folder:
        print("  agents behind a server   skipped: REPLAY_DATA_DIR names no replay folder")
        return {}
    chosen = _spread(list(sessions(folder, *WALL_PERIOD, WALL_SYMBOLS)))
    walls: dict[str, list[float]] = {}
    cpu: dict[str, float] = {}
    calls: dict[str, int] = {}
    for arm in ARMS:
        with _server() as server:
            walls[arm], cpu[arm] = _asked(arm, chosen, server)
            calls[arm] = server.answered
    base = np.array(walls["sequential"])
    figures: dict[str, Any] = {"decisions": len(chosen)}
    print(f"  agents behind a server   {len(chosen)} decisions, one at a time, log-normal latencies {LATENCY_S} s")
    for arm in ARMS:
        ratios = (np.array(walls[arm]) / base).tolist()
        mean = float(np.mean(walls[arm]))
        share, low, high = resampled(list(zip(walls[arm], base.tolist(), strict=True)), _ratio_of_means, SEED)
        print(
            f"    {arm:11} wall mean {mean:.3f} s, p95 {percentile(walls[arm], 95):.3f} s, {1 - share:6.1%} less than "
            f"sequential [{1 - high:.1%}, {1 - low:.1%}], {calls[arm]} calls, {cpu[arm]:.1f} ms CPU a decision, "
            f"server and SDK included (p50 of ratios {percentile(ratios, 50):.2f})"
        )
        figures[arm] = {
            "wall_s": mean,
            "saved": 1 - share,
            "saved_low": 1 - high,
            "calls": calls[arm],
            "cpu_ms": cpu[arm],
        }
    print(f"    aim: {AIM_SAVED:.0%} less than sequential and fewer calls than parallel")
    return {"behind_a_server": figures}


def one_hosted_decision() -> dict[str, Any]:
    """A decision with four agents and three judges behind servers of 200 ms: wall, calls, bytes, and CPU beyond the calls'."""
    if str(_TESTS) not in sys.path:
        sys.path.insert(0, str(_TESTS))
    from hosted_questions import request

    with tempfile.TemporaryDirectory(prefix="bench-workflow-") as folder, fake_servers() as urls:
        keys = {f"{name}_api_key": "test-key" for name in VENDORS}
        addresses = {f"{name}_base_url": url for name, url in urls.items()}
        config = OrchestratorConfig(
            agents="rules", data_dir=folder, llm={"cache": "off"}, budget={"usd_per_day": 1e6}, **keys, **addresses
        )
        models = ChatModels(config, replay=False)
        judges = {name: models.model(name, f"{name}-fixed") for name in VENDORS}
        counted = _Counted(models.model("openai", "openai-fixed"))
        agents = build_agents(config)
        for name in LATENCY_S:
            agents[name].set_policy(hosted_policy(agents[name].agent_type, counted, agents[name].policy))
        coordinator = Coordinator(config, agents=agents, timer=time.perf_counter)
        panel = MultiJudgeConsensus(
            [], judges=[LLMJudge.for_panel(name, _Counted.over(counted, m)) for name, m in judges.items()]
        )
        walls, cpu = [], []
        for number in range(HOSTED_DECISIONS + 2):
            asked = request("news", symbol=f"S{number}", seed=number)
            sound = tuple(item for item in asked.snapshot.news if "IGNORE" not in item.text)
            snapshot = narrowed(asked.snapshot, "sound news", news=sound)
            case = OpenCase(f"d{number}", snapshot, lambda snapshot=snapshot: snapshot, asked.regime)
            started, started_cpu = time.perf_counter(), time.process_time()
            (analysis,) = coordinator._decide([case], Portfolio(cash=1e5))
            result = panel.evaluate("strategist", analysis.decision.strategist, "strategist_rubric")
            walls.append(time.perf_counter() - started)
            cpu.append(1000 * (time.process_time() - started_cpu))
            assert len(result.individual_scores) == len(VENDORS), (result.status, result.excluded, result.flags)
        calls = len(counted.asked) / (HOSTED_DECISIONS + 2)
        sent = counted.asked[-round(calls) :]
        started_cpu = time.process_time()
        for _ in range(HOSTED_DECISIONS):
            for future in [model.submit(messages, schema) for model, messages, schema in sent]:
                future.result()
        floor = 1000 * (time.process_time() - started_cpu) / HOSTED_DECISIONS
        coordinator.close()
        panel.close()
        models.close()
    size = sum(len(m.content.encode()) for _, messages, _ in sent for m in messages)
    wall, own = Spread.of(walls[2:]), Spread.of([value - floor for value in cpu[2:]])
    print(
        f"  one hosted decision      wall {wall.text(3)} s (aim 0.7), {calls:.1f} calls (aim 8), {size / 1000:.1f} KB of prompt "
        f"(aim 70), own CPU {own.text(1)} ms beyond {floor:.1f} of the calls (aim {AIM_OWN_CPU_MS:g}; n {HOSTED_DECISIONS})"
    )
    return {
        "hosted": {
            "wall_s": wall.median,
            "calls": calls,
            "prompt_bytes": size,
            "own_cpu_ms": own.median,
            "calls_cpu_ms": floor,
        }
    }


class _Counted:
    """A chat model that remembers what it was asked."""

    def __init__(self, model: ChatModel) -> None:
        self._model, self.name = model, model.name
        self.asked: list[tuple[ChatModel, Any, Any]] = []

    @classmethod
    def over(cls, other: _Counted, model: ChatModel) -> _Counted:
        """Return one that writes into another's memory."""
        made = cls(model)
        made.asked = other.asked
        return made

    def submit(self, messages: Any, schema: Any, **options: Any) -> Any:
        """Ask."""
        self.asked.append((self._model, messages, schema))
        return self._model.submit(messages, schema, **options)

    def complete(self, messages: Any, schema: Any, **options: Any) -> Any:
        """Ask and wait."""
        return self.submit(messages, schema, **options).result()


def declared() -> dict[str, Any]:
    """Latency along the critical path, calls and rewards over all symbols and 84 sessions, three ways."""
    folder = os.environ.get("REPLAY_DATA_DIR")
    if not folder:
        print("  declared latencies       skipped: REPLAY_DATA_DIR names no replay folder")
        return {}
    arms = {arm: _Tally(arm) for arm in ARMS}
    seen = 0
    for session in sessions(folder, *DECLARED_PERIOD):
        seen += 1
        for tally in arms.values():
            tally.take(session)
    base = arms["sequential"]
    print(
        f"  declared latencies       {base.decisions} decisions, {seen} sessions, {len(base.waits)} of them asked a model"
    )
    figures: dict[str, Any] = {"decisions": base.decisions, "sessions": seen}
    days = sorted(base.rewards)
    for arm, tally in arms.items():
        saved = 1 - sum(tally.waits) / sum(base.waits)
        better = paired_difference([np.mean(tally.rewards[d]) for d in days], [np.mean(base.rewards[d]) for d in days])
        print(
            f"    {arm:11} mean {np.mean(tally.waits):.3f} s ({saved:6.1%} less), {tally.calls / base.decisions:.3f} calls a "
            f"decision ({1 - tally.calls / base.calls:.1%} fewer), reward {better.estimate:+.4f} against sequential "
            f"[{better.low:+.4f}, {better.high:+.4f}]"
        )
        figures[arm] = {
            "mean_s": float(np.mean(tally.waits)), "saved": saved, "calls": tally.calls,
            "reward_difference": [better.estimate, better.low, better.high], "rewrites": dict(tally.rewrites),
        }  # fmt: skip
    concurrency = 1 - sum(arms["parallel"].waits) / sum(base.waits)
    spared = figures["dynamic"]["saved"] - concurrency
    fired = ", ".join(f"{name} {count}" for name, count in sorted(arms["dynamic"].rewrites.items()))
    print(
        f"    of the dynamic saving: {concurrency:.1%} by concurrency as in parallel, {spared:+.1%} by calls not made"
    )
    print(f"    rules that fired: {fired}; differing strategist decisions {arms['dynamic'].differing(base):.1%}")
    return {"declared": figures}


def _ratio_of_means(pairs: Any) -> float:
    values = np.asarray(pairs, dtype=float)
    return float(values[:, 0].mean() / values[:, 1].mean())


def _spread(found: list[Session]) -> list[tuple[Session, str]]:
    """Return decisions spread evenly over sessions and symbols, chosen before anything is asked."""
    pairs = [(session, symbol) for session in found for symbol in WALL_SYMBOLS]
    step = max(1, len(pairs) // WALL_DECISIONS)
    return pairs[::step][:WALL_DECISIONS]


@dataclass
class _Tally:
    """One way's decisions over the history."""

    arm: str
    waits: list[float] = field(default_factory=list)
    rewards: dict[date, list[float]] = field(default_factory=lambda: defaultdict(list))
    rewrites: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    said: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    decisions: int = 0
    _tracker: OutcomeTracker | None = None

    def __post_init__(self) -> None:
        self._coordinator = coordinator_of(self.arm, declared_agents(), timer=None)
        self._portfolio = Portfolio(cash=1e5)

    def take(self, session: Session) -> None:
        """Settle what is due and decide on every symbol."""
        if self._tracker is None:
            self._tracker = OutcomeTracker(
                session.calendar, HORIZON, ONE_WAY_COST, RewardCalculator(volatility_scaling=True), 0.0
            )
        settled = self._tracker.settle(session.view, session.day, session.at, session.symbols)
        rewards = {update.trajectory_id: update.reward for update in settled.updates}
        for decision, _ in settled.outcomes:
            for each in decision.opinions:
                if each.agent_type == "strategist":
                    self.rewards[decision.session].append(rewards[each.trajectory_id])
        for analysis in self._coordinator.analyze(session.view, session.day, session.symbols, self._portfolio):
            self._note(analysis, session)

    def differing(self, other: _Tally) -> float:
        """Return the share of decisions whose recommendation is another than the other way's."""
        return sum(said != other.said[key] for key, said in self.said.items()) / len(self.said)

    def _note(self, analysis: Analysis, session: Session) -> None:
        decision = analysis.decision
        self.decisions += 1
        outputs: Mapping[str, AgentOutput] = {**decision.agents, "strategist": decision.strategist}
        asked = [name for name, output in outputs.items() if output.latency_s > 0]
        asked += [e["agent"] for e in decision.workflow if e.get("status") == "retried"]
        self.calls += len(asked)
        ends = [e["started_ms"] + e["latency_ms"] for e in decision.workflow if e["event"] in ("step", "decision")]
        if asked:
            self.waits.append(max(ends) / 1000)
        for event in decision.workflow:
            if event["event"] == "rewrite":
                self.rewrites[event["rule"]] += 1
        key = question_key("strategist", decision.symbol, decision.as_of)
        self.said[key] = decision.strategist.recommendation
        waiting = open_decision(trajectory_ids("bench", decision), decision, analysis.snapshot)
        if waiting is not None and self._tracker is not None:
            self._tracker.track(waiting)


class _Opinions:
    """What the fake server answers: the opinion on the request that stands behind a question."""

    def __init__(self) -> None:
        self._known: dict[str, AgentOutput] = {}
        self._lock = threading.Lock()

    def note(self, rules: Policy, request: PolicyRequest) -> None:
        """Remember the opinion on a request."""
        said = opinion(rules, request)
        with self._lock:
            self._known[question_key(rules.agent_type, request.snapshot.symbol, request.snapshot.as_of)] = said

    def of(self, question: Any) -> AgentOutput:
        """Return the opinion that a question asks for."""
        found = re.search(r"^symbol (\S+), as of (\S+)", question.user, re.MULTILINE)
        assert found is not None
        properties = question.schema["properties"]
        marks = {"sentiment_score": "news", "trend": "technical", "financial_health": "fundamental"}
        agent_type = next((name for mark, name in marks.items() if mark in properties), "strategist")
        with self._lock:
            return self._known[f"{agent_type}|{found.group(1)}|{found.group(2)}"]


@dataclass
class _Server:
    url: str
    opinions: _Opinions
    fake: Any

    @property
    def answered(self) -> int:
        """Completions that were asked for."""
        return len(self.fake.completions)


@contextmanager
def _server() -> Iterator[_Server]:
    if str(_TESTS) not in sys.path:
        sys.path.insert(0, str(_TESTS))
    from fakes.vendors import FakeOpenAI, answering

    opinions = _Opinions()

    def delay(question: Any) -> float:
        said = opinions.of(question)
        return latency_s(said.agent_type, said.symbol, said.as_of)

    with FakeOpenAI(answering(lambda question: _answer(opinions.of(question), question)), latency_s=delay) as fake:
        yield _Server(fake.url, opinions, fake)


def _answer(said: AgentOutput, question: Any) -> dict[str, Any]:
    """Return an opinion in the form that the question asks for."""
    cited = re.search(r"^\[([^\]]+)\]", question.user, re.MULTILINE)
    evidence = cited.group(1) if cited else ""
    dumped = said.model_dump(mode="json")
    answer: dict[str, Any] = {}
    for name, schema in question.schema["properties"].items():
        value = dumped.get(name)
        if name == "evidence_ids":
            value = [evidence]
        elif name == "reasoning":
            value = f"What was shown [{evidence}] speaks for it."
        elif name == "signals":
            value = {key: dumped["signals"].get(key, 0.0) for key in schema["properties"]}
        elif name in ("key_events", "patterns"):
            value = []
        elif name in ("stop_loss", "take_profit"):
            value = value or 0.0
        elif name in ("key_factors", "key_strengths", "key_risks", "risk_factors"):
            value = (value or ["none named"])[:6]
        elif name == "risk_assessment":
            value = value or "none named"
        answer[name] = value
    return answer


class _NotedPolicy:
    """A hosted policy whose requests the fake server gets to know."""

    def __init__(self, rules: Policy, model: ChatModel, opinions: _Opinions) -> None:
        self._hosted = hosted_policy(rules.agent_type, model, rules, boundary_key=b"benchmark")
        assert isinstance(self._hosted, HostedModelPolicy)
        self._rules, self._opinions = rules, opinions
        self.agent_type: AgentType = rules.agent_type
        self.name = self._hosted.name
        self.reads_experiences, self.waits = False, True
        self.prompt_hash = self._hosted.prompt_hash

    def decide_many(self, requests: Any) -> list[AgentOutput]:
        """Answer every request."""
        for request in requests:
            self._opinions.note(self._rules, request)
        return self._hosted.decide_many(requests)


def _asked(arm: str, chosen: list[tuple[Session, str]], server: _Server) -> tuple[list[float], float]:
    """Return the wall seconds of each decision, and the process's CPU in ms a decision."""
    with tempfile.TemporaryDirectory(prefix="bench-workflow-") as folder:
        config = OrchestratorConfig(
            openai_api_key="test-key", openai_base_url=server.url, data_dir=folder, llm={"cache": "off"}
        )
        models = ChatModels(config, replay=False)
        agents: dict[str, Agent] = build_agents(OrchestratorConfig(agents="rules"))
        for name in LATENCY_S:
            agents[name].set_policy(_NotedPolicy(agents[name].policy, models.model("openai"), server.opinions))
        coordinator = coordinator_of(arm, agents, timer=time.perf_counter)
        portfolio = Portfolio(cash=1e5)
        walls = []
        started_cpu = time.process_time()
        for session, symbol in chosen:
            started = time.perf_counter()
            coordinator.analyze(session.view, session.day, (symbol,), portfolio)
            walls.append(time.perf_counter() - started)
        cpu_ms = 1000 * (time.process_time() - started_cpu) / len(chosen)
        coordinator.close()
        models.close()
    return walls, cpu_ms
