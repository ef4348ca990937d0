"""Local models as the daemon opens them: what they wait for, how they fail, and what becomes of versions that are swapped."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance", reason="needs the extra `training`")
pytest.importorskip("peft", reason="needs the extra `training`")

from daemon_runner import ROOT, environment
from fakes.lora_server import FakeLoraServer
from fakes.openai_dialect import OpenAI
from local_model_lab import micro_base, questions, write_adapter

from agents.factory import rules_for
from agents.policies.local.engine import Adapter
from agents.policies.local.policy import LocalModelPolicy
from monitoring.deployment import Deployment
from orchestration.coordinator import Coordinator
from training.local_models import LocalModels
from training.model_registry import Held, Holders, ModelVersion
from utils.errors import ProviderError
from utils.settings import OrchestratorConfig

pytestmark = pytest.mark.timeout(120)

HOLD = '{"recommendation":"hold","confidence":0.5,"evidence":""}'


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return micro_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    folder = tmp_path_factory.mktemp("adapters")
    return [write_adapter(base, folder / f"a{seed}", seed) for seed in range(2)]


def config_of(base: Path, **fields: Any) -> OrchestratorConfig:
    local = {"device": "cpu", **fields.pop("local", {})}
    return OrchestratorConfig(agents="local", learning={"base_model": str(base)}, local=local, **fields)


def version_of(name: str, adapter: Adapter, agent_type: str = "technical", sha256: str | None = None) -> ModelVersion:
    folder = adapter.folder
    return ModelVersion(
        name, agent_type, None, folder, sha256 or adapter.sha256, "base", "0" * 64, folder, {}, "champion"
    )  # fmt: skip


def deadline_of(models: LocalModels) -> float | None:
    policy = models.policy_for("technical", rules_for("technical"))
    assert isinstance(policy, LocalModelPolicy)
    return policy._deadline_s


def test_a_replay_waits_for_the_model_of_its_own_process_however_slow_the_machine_is(base: Path) -> None:
    config = config_of(base, agent_settings={"technical": {"timeout_s": 7.0}})
    with LocalModels(config) as replayed, LocalModels(config, live=True) as live:
        assert (deadline_of(replayed), deadline_of(live)) == (None, 7.0)


def test_a_server_has_the_agents_timeout_in_a_replay_too(base: Path) -> None:
    with FakeLoraServer(OpenAI().answer(HOLD)) as server:
        local = {"server_url": server.url, "served_model": "base"}
        with LocalModels(config_of(base, local=local, agent_settings={"technical": {"timeout_s": 7.0}})) as models:
            assert deadline_of(models) == 7.0


def test_a_vendors_key_is_never_sent_to_the_server_of_local_models(base: Path) -> None:
    keys: dict[str, Any] = {"openai_api_key": "sk-vendor", "local_server_api_key": "sk-own"}
    for given, sent in ((keys, "Bearer sk-own"), ({"openai_api_key": "sk-vendor"}, "Bearer EMPTY")):
        with FakeLoraServer(OpenAI().answer(HOLD)) as server:
            local = {"server_url": server.url, "served_model": "base"}
            with LocalModels(config_of(base, local=local, **given)) as models:
                models.policy_for("technical", rules_for("technical"))
            assert {request.headers["authorization"] for request in server.requests} == {sent}


def test_a_base_model_is_named_by_its_content(base: Path, tmp_path: Path) -> None:
    import shutil

    moved, changed = tmp_path / "moved", tmp_path / "changed"
    shutil.copytree(base, moved)
    shutil.copytree(base, changed)
    (changed / "generation_config.json").write_text('{"temperature": 0.5}')
    names = []
    for folder in (base, moved, changed):
        with LocalModels(config_of(folder)) as models:
            names.append(models.base_version())
    assert names[0] == names[1] != names[2]


def test_a_cache_that_cannot_be_written_is_a_provider_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")
    config = OrchestratorConfig(agents="local", model_cache_dir=tmp_path / "cache")
    with LocalModels(config) as models, pytest.raises(ProviderError, match=r"no local model: .*cache"):
        models.policy_for("technical", rules_for("technical"))


WITHOUT = """
import sys
from pathlib import Path
sys.modules[sys.argv[1]] = None
from agents.factory import rules_for
from training.local_models import LocalModels
from utils.errors import ProviderError
from utils.settings import OrchestratorConfig
models = LocalModels(OrchestratorConfig(agents="local", learning={"base_model": sys.argv[2]}, data_dir=Path(sys.argv[3])))
try:
    models.policy_for("technical", rules_for("technical"))
except ProviderError as error:
    print(error)
"""


@pytest.mark.parametrize(("library", "builtin"), [("torch", True), ("transformers", False), ("llguidance", False)])
def test_a_library_that_is_not_installed_is_a_provider_error_with_the_remedy(
    base: Path, tmp_path: Path, library: str, builtin: bool
) -> None:
    model = "builtin:tiny" if builtin else str(base)
    said = subprocess.run(
        [sys.executable, "-c", WITHOUT, library, model, str(tmp_path)],
        cwd=ROOT, env={**environment(), "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip
    assert library in said.stdout
    assert "install stock-agents[training]" in said.stdout


class Aliases(dict[str, Holders]):
    """What the aliases point to, by agent."""

    def held_by(self, agent_type: str) -> Holders:
        return self.get(agent_type, {})

    def hold(self, **aliases: ModelVersion | None) -> None:
        """Point aliases to versions, or nowhere; the agent stands in the names of the versions."""
        agent_type = next(version.agent_type for version in aliases.values() if version is not None)
        held = {**self.get(agent_type, {})}
        for alias, version in aliases.items():
            held.pop(alias, None)  # type: ignore[call-overload]
            if version is not None:
                held[alias] = Held(version, datetime(2014, 1, 6, tzinfo=UTC), "")  # type: ignore[index]
        self[agent_type] = held


Deployed = tuple[Deployment, Coordinator, LocalModels, list[str], Aliases]


@pytest.fixture
def deployed(base: Path) -> Iterator[Deployed]:
    config = config_of(base, agent_settings={"fundamental": {"policy": "rules"}})
    states: list[str] = []
    aliases = Aliases()
    with LocalModels(config) as models:
        coordinator = Coordinator(config, local_policies=models.policy_for)
        yield (
            Deployment(config, coordinator, models, aliases.held_by, states.append),
            coordinator,
            models,
            states,
            aliases,
        )
        coordinator.close()


def loaded(models: LocalModels) -> set[str]:
    """Return the trained versions that the engine holds, once its thread has done all that it was handed before."""
    gc.collect()
    engine: Any = models._engine
    engine.open(models.base_version()).close()  # the thread keeps the order: what was let go before has left by now
    return {name for name in engine._holders if "@" in name and not name.startswith("base@")}


def test_a_version_that_cannot_be_loaded_leaves_the_former_one_and_the_state_heals_with_the_next_that_can(
    deployed: Deployed, adapters: list[Adapter]
) -> None:
    deployment, coordinator, _, states, aliases = deployed
    first, broken = version_of("technical@1", adapters[0]), version_of("technical@2", adapters[1], sha256="f" * 64)
    aliases.hold(champion=first)
    deployment.align("technical")
    aliases.hold(champion=broken, previous=first)
    deployment.align("technical")
    assert coordinator.policies["technical"] == "local:technical@1"
    assert coordinator.shadows == {}
    assert states == ["degraded: technical@2 cannot be loaded"]
    aliases.hold(champion=version_of("news@1", adapters[1], "news", sha256="f" * 64))
    deployment.align("news")
    aliases.hold(champion=version_of("technical@3", adapters[1]))
    deployment.align("technical")
    assert coordinator.policies["technical"] == "local:technical@3"
    assert states[1:] == ["degraded: news@1 cannot be loaded"]
    aliases.hold(champion=version_of("news@2", adapters[1], "news"))
    deployment.align("news")
    assert states[2:] == ["running"]
    moved = adapters[0].folder.rename(adapters[0].folder.with_name("away"))
    aliases.hold(champion=version_of("strategist@1", adapters[0], "strategist"))
    deployment.align("strategist")
    assert states[3:] == ["degraded: strategist@1 cannot be loaded"]
    moved.rename(adapters[0].folder)
    deployment.align("strategist")
    assert coordinator.policies["strategist"] == "local:strategist@1"
    assert states[4:] == ["running"]


def test_a_champion_that_is_aligned_twice_serves_on_in_the_same_policy_and_what_is_not_needed_has_left(
    deployed: Deployed, adapters: list[Adapter]
) -> None:
    deployment, coordinator, models, states, aliases = deployed
    aliases.hold(champion=version_of("technical@1", adapters[0]))
    deployment.align("technical")
    aliases.hold(champion=version_of("technical@2", adapters[1]))
    deployment.align("technical")
    policy = coordinator.serving("technical")
    deployment.align("technical")
    assert coordinator.serving("technical") is policy
    assert coordinator.policies["technical"] == "local:technical@2"
    answers = policy._source.answer(questions(4, seed=3))  # type: ignore[union-attr]
    assert all(isinstance(answer, str) for answer in answers)
    assert loaded(models) == {"technical@2"}
    assert states == []


def test_a_challenger_answers_in_shadow_serves_once_it_is_champion_and_leaves_when_it_is_turned_down(
    deployed: Deployed, adapters: list[Adapter]
) -> None:
    deployment, coordinator, models, _, aliases = deployed
    base_policy = coordinator.policies["technical"]
    challenger = version_of("technical@1", adapters[0])
    aliases.hold(challenger=challenger)
    deployment.align("technical")
    assert (coordinator.policies["technical"], coordinator.shadows) == (
        base_policy,
        {"technical": ["local:technical@1"]},
    )
    shadow = coordinator._shadows._policies["technical"][0]
    aliases.hold(champion=challenger, challenger=None)
    deployment.align("technical")
    assert coordinator.serving("technical") is shadow  # nothing was loaded anew
    assert coordinator.shadows == {"technical": [base_policy]}
    aliases.hold(challenger=version_of("technical@2", adapters[1]), champion=challenger)
    deployment.align("technical")
    assert coordinator.shadows == {"technical": [base_policy, "local:technical@2"]}
    aliases.hold(challenger=None, champion=challenger)
    deployment.align("technical")
    del shadow
    assert loaded(models) == {"technical@1"}


def test_a_champion_is_shadowed_by_its_predecessor_and_what_was_withdrawn_has_left(
    deployed: Deployed, adapters: list[Adapter]
) -> None:
    deployment, coordinator, models, _, aliases = deployed
    base_policy = coordinator.policies["technical"]
    first, second = version_of("technical@1", adapters[0]), version_of("technical@2", adapters[1])
    aliases.hold(champion=second, previous=first)
    deployment.align("technical")
    assert (coordinator.policies["technical"], coordinator.shadows) == (
        "local:technical@2", {"technical": ["local:technical@1"]},
    )  # fmt: skip
    aliases.hold(champion=first, previous=None)
    deployment.align("technical")
    assert (coordinator.policies["technical"], coordinator.shadows) == (
        "local:technical@1", {"technical": [base_policy]},
    )  # fmt: skip
    aliases["technical"] = {}
    deployment.align("technical")
    assert (coordinator.policies["technical"], coordinator.shadows) == (base_policy, {})
    assert loaded(models) == set()


def test_a_champion_whose_predecessor_lies_on_another_base_model_is_shadowed_by_what_it_replaced_and_nothing_is_degraded(
    deployed: Deployed, adapters: list[Adapter], base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deployment, coordinator, _, states, aliases = deployed
    base_policy = coordinator.policies["technical"]
    stranger = write_adapter(base, tmp_path / "stranger", 7, base_sha256="e" * 64)
    aliases.hold(champion=version_of("technical@2", adapters[1]), previous=version_of("technical@1", stranger))
    for _ in range(2):
        deployment.align("technical")
    assert (coordinator.policies["technical"], coordinator.shadows) == (
        "local:technical@2", {"technical": [base_policy]},
    )  # fmt: skip
    assert deployment.counterpart("technical", "technical@1") == base_policy
    fault = deployment.load_fault("technical", "technical@1")
    assert fault is not None
    assert fault.lasting
    assert "it was trained on the base model eeeeeeeeeeee" in fault.reason
    assert deployment.load_fault("technical", "technical@2") is None
    assert states == []
    (said,) = [record for record in caplog.records if "technical@1" in record.getMessage()]
    assert said.levelname == "WARNING"
    assert said.getMessage().endswith(f"a rollback would go to {base_policy}")


def test_a_predecessor_that_a_server_may_have_again_degrades_the_state_until_it_answers_in_shadow(
    adapters: list[Adapter], base: Path
) -> None:
    with FakeLoraServer(OpenAI().answer(HOLD)) as server:
        config = config_of(base, local={"server_url": server.url, "served_model": "base"})
        states: list[str] = []
        with LocalModels(config) as models:
            coordinator, aliases = Coordinator(config, local_policies=models.policy_for), Aliases()
            deployment = Deployment(config, coordinator, models, aliases.held_by, states.append)
            reference = coordinator.policies["technical"]
            champion, previous = version_of("technical@2", adapters[1]), version_of("technical@1", adapters[0])
            aliases.hold(champion=champion)
            deployment.align("technical")
            server.runtime_loading = False
            aliases.hold(champion=champion, previous=previous)
            deployment.align("technical")
            assert coordinator.shadows == {"technical": [reference]}
            assert deployment.counterpart("technical", "technical@1") == reference
            fault = deployment.load_fault("technical", "technical@1")
            assert fault is not None
            assert not fault.lasting
            server.runtime_loading = True
            deployment.align("technical")
            assert coordinator.shadows == {"technical": ["local:technical@1"]}
            assert deployment.counterpart("technical", "technical@1") == "local:technical@1"
            assert states == ["degraded: technical@1 cannot be loaded", "running"]
            coordinator.close()


def test_a_challenger_of_another_base_model_is_told_to_be_lost_for_good_and_degrades_the_state_while_it_is_on_trial(
    deployed: Deployed, adapters: list[Adapter], base: Path, tmp_path: Path
) -> None:
    deployment, coordinator, _, states, aliases = deployed
    stranger = write_adapter(base, tmp_path / "stranger", 7, base_sha256="e" * 64)
    aliases.hold(challenger=version_of("technical@1", stranger))
    deployment.align("technical")
    fault = deployment.load_fault("technical", "technical@1")
    assert fault is not None
    assert (fault.lasting, coordinator.shadows) == (True, {})
    aliases["technical"] = {}
    deployment.align("technical")
    assert deployment.load_fault("technical", "technical@1") is None
    assert states == ["degraded: technical@1 cannot be loaded", "running"]


def test_without_a_base_model_no_version_is_lost_for_good(adapters: list[Adapter], tmp_path: Path) -> None:
    config = OrchestratorConfig(agents="rules", learning={"base_model": str(tmp_path / "not_yet")})
    with LocalModels(config) as models:
        coordinator, aliases = Coordinator(config, local_policies=models.policy_for), Aliases()
        deployment = Deployment(config, coordinator, models, aliases.held_by, lambda state: None)
        aliases.hold(challenger=version_of("technical@1", adapters[0]))
        deployment.align("technical")
        fault = deployment.load_fault("technical", "technical@1")
        assert fault is not None
        assert not fault.lasting
        assert "not_yet" in fault.reason
        coordinator.close()


def test_a_withdrawn_version_does_not_go_on_serving_where_its_heir_cannot_be_loaded(
    deployed: Deployed, adapters: list[Adapter]
) -> None:
    deployment, coordinator, _, states, aliases = deployed
    base_policy = coordinator.policies["technical"]
    aliases.hold(champion=version_of("technical@2", adapters[1]))
    deployment.align("technical")
    aliases.hold(champion=version_of("technical@1", adapters[0], sha256="f" * 64))
    deployment.align("technical")
    assert coordinator.policies["technical"] == base_policy
    assert states == ["degraded: technical@1 cannot be loaded"]


def test_a_seat_that_is_configured_otherwise_keeps_its_policy_and_its_challenger_is_tried_all_the_same(
    deployed: Deployed, adapters: list[Adapter]
) -> None:
    deployment, coordinator, _, _, aliases = deployed
    champion, challenger = (version_of(f"fundamental@{n}", adapters[n], "fundamental") for n in (0, 1))
    aliases.hold(champion=champion, challenger=challenger)
    deployment.align("fundamental")
    assert coordinator.policies["fundamental"] == deployment.counterpart("fundamental", None) == "rules"
    assert coordinator.shadows == {"fundamental": ["local:fundamental@1"]}


def test_a_version_that_a_server_was_told_to_load_is_unloaded_once_a_swap_has_forgotten_it(
    adapters: list[Adapter], base: Path
) -> None:
    with FakeLoraServer(OpenAI().answer(HOLD)) as server:
        config = config_of(base, local={"server_url": server.url, "served_model": "base"})
        with LocalModels(config) as models:
            coordinator, aliases = Coordinator(config, local_policies=models.policy_for), Aliases()
            deployment = Deployment(config, coordinator, models, aliases.held_by, lambda state: None)
            for number, adapter in enumerate(adapters):
                aliases.hold(champion=version_of(f"technical@{number}", adapter))
                deployment.align("technical")
            gone = threading.Event()
            for _ in range(1000):
                if server.unloaded:
                    break
                gone.wait(0.01)
            assert (server.unloaded, list(server.adapters)) == (["technical@0"], ["technical@1"])
            coordinator.close()
