"""Who thinks in which seat: every way of choosing, every choice that cannot be, and what other packages bring."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from plug_in_layout import lay_out

from agents.factory import (
    BUILT_IN,
    build_agents,
    check_plug_ins,
    plug_ins,
    plugin_policy,
    policy_kind,
    policy_kinds,
    rules_for,
)
from agents.policies.base import Policy
from agents.policies.local.states import LOCAL_AGENTS
from agents.policies.prompting import PROMPTED_AGENTS
from agents.policies.rules import RulesTechnical
from utils.errors import ConfigError
from utils.schema import AGENT_TYPES, AgentType
from utils.settings import ENVIRONMENT, OrchestratorConfig

KEYS = {"anthropic": "anthropic_api_key", "openai": "openai_api_key", "gemini": "gemini_api_key"}
PlugIns = Callable[..., None]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No keys and no settings but a test's own."""
    for variable in ENVIRONMENT.values():
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(f"{variable}_FILE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[PlugIns]:
    """Installs plug-ins by name, each with the body of its callable."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)
    modules: list[str] = []

    def install(name: str, source: str, attribute: str = "policy") -> None:
        modules.append(f"plug_in_{name}")
        lay_out(site, name, modules[-1], source, attribute)

    yield install
    for module in modules:
        sys.modules.pop(module, None)


def config(agents: str = "auto", keys: tuple[str, ...] = (), **own: str) -> OrchestratorConfig:
    seats: dict[Any, Any] = {name: {"policy": kind} for name, kind in own.items()}
    given: dict[str, Any] = {KEYS[provider]: f"key-of-{provider}" for provider in keys}
    return OrchestratorConfig(agents=agents, agent_settings=seats, **given)


# how a seat thinks


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ((), "rules"),
        (("gemini",), "gemini"),
        (("openai", "gemini"), "openai"),
        (("gemini", "openai", "anthropic"), "anthropic"),
    ],
)
def test_auto_is_the_first_provider_with_a_key_else_rules(keys: tuple[str, ...], kind: str) -> None:
    for own in ({}, dict.fromkeys(PROMPTED_AGENTS, "auto")):
        assert policy_kinds(config("auto", keys, **own)) == {**dict.fromkeys(PROMPTED_AGENTS, kind), "validator": "rules"}  # fmt: skip


@pytest.mark.parametrize("agents", ["rules", "local", "anthropic", "openai", "gemini"])
def test_a_choice_for_all_is_that_of_every_seat_it_can_think_for(agents: str) -> None:
    kinds = policy_kinds(config(agents, tuple(KEYS)))
    assert kinds == {**dict.fromkeys(PROMPTED_AGENTS, agents), "validator": "rules"}
    assert set(PROMPTED_AGENTS) == set(LOCAL_AGENTS)


@pytest.mark.parametrize("agents", ["auto", "rules", "local", "anthropic"])
@pytest.mark.parametrize("own", ["rules", "local", "openai", "gemini"])
@pytest.mark.parametrize("seat", LOCAL_AGENTS)
def test_a_seats_own_choice_goes_before_that_of_all(agents: str, own: str, seat: AgentType) -> None:
    keys = ("anthropic", "openai", "gemini")
    kinds = policy_kinds(config(agents, keys, **{seat: own}))
    others = "anthropic" if agents == "auto" else agents
    assert kinds == {**dict.fromkeys(PROMPTED_AGENTS, others), "validator": "rules", seat: own}


def test_a_seat_may_be_auto_among_others_that_are_not() -> None:
    assert policy_kinds(config("local", ("openai",), news="auto")) == {
        "news": "openai", "technical": "local", "fundamental": "local", "strategist": "local", "validator": "rules",
    }  # fmt: skip


def test_the_validator_thinks_by_rules_unless_a_plug_in_is_named_for_it(installed: PlugIns) -> None:
    installed("umpire", "policy = None\n")
    assert policy_kind(config("local", tuple(KEYS)), "validator") == "rules"
    assert [policy_kind(config(validator=own), "validator") for own in ("auto", "rules", "umpire")] == [
        "rules", "rules", "umpire",
    ]  # fmt: skip


@pytest.mark.parametrize("own", ["local", "anthropic", "openai", "gemini"])
def test_no_model_may_be_named_for_the_validator(own: str) -> None:
    with pytest.raises(ConfigError, match=rf"agents\.validator\.policy: '{own}' cannot think for the validator agent"):
        policy_kind(config(keys=tuple(KEYS), validator=own), "validator")


@pytest.mark.parametrize("provider", KEYS)
def test_a_provider_without_a_key_is_refused_with_the_variable_to_set(provider: str) -> None:
    others = tuple(name for name in KEYS if name != provider)
    with pytest.raises(ConfigError, match=rf"agents: '{provider}' needs a key; set {provider.upper()}_API_KEY"):
        policy_kinds(config(provider, others))
    with pytest.raises(ConfigError, match=rf"agents\.news\.policy: '{provider}' needs a key"):
        policy_kinds(config("rules", others, news=provider))


def test_an_unknown_choice_is_refused_with_all_there_are_and_the_nearest(installed: PlugIns) -> None:
    installed("momentum", "policy = None\n")
    known = ", ".join((*BUILT_IN, "momentum"))
    with pytest.raises(ConfigError) as caught:
        policy_kind(config(technical="momentun"), "technical")
    assert str(caught.value) == (
        f"agents.technical.policy: 'momentun' is no way to think; choose one of {known}; did you mean 'momentum'?"
    )


def test_a_seat_that_is_left_empty_is_not_asked_how_it_thinks() -> None:
    settings: dict[Any, Any] = {"news": {"enabled": False, "policy": "nobody"}}
    kinds = policy_kinds(OrchestratorConfig(agent_settings=settings))
    assert kinds.keys() == set(AGENT_TYPES) - {"news"}


def test_the_strategist_and_the_validator_are_always_there() -> None:
    settings: dict[Any, Any] = {name: {"enabled": False} for name in AGENT_TYPES}
    chosen = OrchestratorConfig(agent_settings=settings)
    assert policy_kinds(chosen).keys() == build_agents(chosen).keys() == {"strategist", "validator"}


# the agents that are built


def test_rules_take_every_seat_where_nothing_else_is_asked_for() -> None:
    agents = build_agents(config())
    assert {name: agent.policy.name for name, agent in agents.items()} == dict.fromkeys(AGENT_TYPES, "rules")


class Thinker(RulesTechnical):
    """Stands for a policy of another kind."""

    name = "thinker"
    lent: Policy | None = None

    def __init__(self, agent_type: AgentType, rules: Policy) -> None:
        self.agent_type = agent_type
        self.lent = rules


def test_local_seats_get_their_policy_from_where_it_was_said_with_their_own_rules() -> None:
    agents = build_agents(config("rules", news="local", strategist="local"), local_policies=Thinker)
    assert {name for name, agent in agents.items() if agent.policy.name == "thinker"} == {"news", "strategist"}
    for name in ("news", "strategist"):
        policy = agents[name].policy
        assert isinstance(policy, Thinker)
        assert policy.lent is not None
        assert (policy.lent.agent_type, policy.lent.name) == (name, "rules")


def test_a_local_seat_without_anything_to_give_it_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"technical is to think with a local model and none is open.*local_policies"):
        build_agents(config("rules", technical="local"))


def test_a_plug_in_takes_its_seat_with_configuration_and_rules(installed: PlugIns) -> None:
    installed(
        "momentum",
        "from agents.policies.rules import RulesTechnical\n"
        "class Momentum(RulesTechnical):\n"
        "    name = 'momentum'\n"
        "def policy(agent_type, config, rules):\n"
        "    made = Momentum()\n"
        "    made.given = (agent_type, config.random_state, rules.agent_type, rules.name)\n"
        "    return made\n",
    )
    agents = build_agents(config("local", technical="momentum"), local_policies=Thinker)
    assert {name: agent.policy.name for name, agent in agents.items()} == {
        "news": "thinker", "technical": "momentum", "fundamental": "thinker", "strategist": "thinker", "validator": "rules",
    }  # fmt: skip
    assert vars(agents["technical"].policy)["given"] == ("technical", 42, "technical", "rules")


# plug-ins that are wrong

WRONG = {
    "raises": ("def policy(*given):\n    raise RuntimeError('gone')\n", r"plug_in_raises:policy failed for the technical agent: RuntimeError\('gone'\)"),
    "unimportable": ("import a_package_that_nobody_has\n", "a_package_that_nobody_has"),
    "unparsable": ("def policy(:\n", "SyntaxError"),
    "nameless": ("policies = {}\n", "AttributeError"),
    "uncallable": ("policy = 42\n", "TypeError"),
    "narrow": ("def policy(agent_type):\n    return None\n", "TypeError"),
    "none": ("def policy(*given):\n    return None\n", "gave a NoneType without agent_type, name, reads_experiences, waits, prompt_hash, decide_many"),
    "partial": ("class P:\n    agent_type, name, waits = 'technical', 'p', False\ndef policy(*given):\n    return P()\n", "gave a P without reads_experiences, prompt_hash, decide_many"),
    "misplaced": ("from agents.policies.rules import RulesNews\ndef policy(*given):\n    return RulesNews()\n", "gave a policy of news to the technical agent"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_plug_in_that_is_wrong_is_a_config_error_that_says_what_is(installed: PlugIns, name: str) -> None:
    source, message = WRONG[name]
    installed(name, source)
    chosen = config("rules", technical=name)
    for refused in (lambda: build_agents(chosen), lambda: check_plug_ins(chosen)):
        with pytest.raises(ConfigError, match=message) as caught:
            refused()
        assert f"policy {name!r}" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_plug_ins_are_listed_by_name_and_never_loaded_for_that(installed: PlugIns) -> None:
    installed("zeta", "raise RuntimeError('loaded')\n")
    installed("alpha", "raise RuntimeError('loaded')\n")
    assert plug_ins() == ("alpha", "zeta")
    assert policy_kind(config(news="zeta"), "news") == "zeta"


def test_a_plug_in_that_nobody_brings_is_named_with_those_there_are(installed: PlugIns) -> None:
    with pytest.raises(ConfigError, match="no plug-in of that name, no installed package brings one"):
        plugin_policy("momentum", "technical", config(), rules_for("technical"))
    installed("momentum", "policy = None\n")
    with pytest.raises(ConfigError, match="there are momentum; did you mean 'momentum'"):
        plugin_policy("momento", "technical", config(), rules_for("technical"))


def test_checking_builds_every_plug_in_once_and_closes_what_it_built(installed: PlugIns) -> None:
    installed(
        "counted",
        "events = []\n"
        "class P:\n"
        "    name, reads_experiences, waits, prompt_hash = 'counted', False, False, None\n"
        "    def decide_many(self, requests): return []\n"
        "    def close(self): events.append(('closed', self.agent_type))\n"
        "def policy(agent_type, config, rules):\n"
        "    made = P()\n"
        "    made.agent_type = agent_type\n"
        "    events.append(('built', agent_type, rules.agent_type))\n"
        "    return made\n",
    )
    check_plug_ins(config("rules", news="counted", validator="counted"))
    assert sys.modules["plug_in_counted"].events == [
        ("built", "news", "news"), ("closed", "news"), ("built", "validator", "validator"), ("closed", "validator"),
    ]  # fmt: skip
