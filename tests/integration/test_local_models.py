"""Local models as the daemon opens them: what they wait for, how they fail, and what becomes of versions that are swapped."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
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
from training.model_registry import ModelVersion
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


@pytest.fixture
def deployed(base: Path) -> Iterator[tuple[Deployment, Coordinator, LocalModels, list[str]]]:
    config = config_of(base)
    states: list[str] = []
    with LocalModels(config) as models:
        coordinator = Coordinator(config, local_policies=models.policy_for)
        yield Deployment(config, coordinator, models, states.append), coordinator, models, states
        coordinator.close()


def test_a_version_that_cannot_be_loaded_leaves_the_former_one_and_the_state_heals_with_the_next_that_can(
    deployed: tuple[Deployment, Coordinator, LocalModels, list[str]], adapters: list[Adapter]
) -> None:
    deployment, coordinator, _, states = deployed
    deployment.deploy(version_of("technical@1", adapters[0]))
    deployment.deploy(version_of("technical@2", adapters[1], sha256="f" * 64))
    assert coordinator.policies["technical"] == "local:technical@1"
    assert states == ["degraded: technical@2 cannot be loaded"]
    deployment.deploy(version_of("news@1", adapters[1], "news", sha256="f" * 64))
    deployment.deploy(version_of("technical@3", adapters[1]))
    assert coordinator.policies["technical"] == "local:technical@3"
    assert states[2:] == ["degraded: news@1 cannot be loaded"]
    deployment.deploy(version_of("news@2", adapters[1], "news"))
    assert states[3:] == ["running"]


def test_a_version_that_is_deployed_twice_serves_on_and_its_predecessor_has_left(
    deployed: tuple[Deployment, Coordinator, LocalModels, list[str]], adapters: list[Adapter]
) -> None:
    deployment, coordinator, models, states = deployed
    for name, adapter in (("technical@1", 0), ("technical@2", 1), ("technical@2", 1)):
        deployment.deploy(version_of(name, adapters[adapter]))
    gc.collect()
    policy = coordinator._agents["technical"].policy
    assert policy.name == "local:technical@2"
    answers = policy._source.answer(questions(4, seed=3))  # type: ignore[attr-defined]
    assert all(isinstance(answer, str) for answer in answers)
    engine: Any = models._engine
    assert set(engine._holders) & {"technical@1", "technical@2"} == {"technical@2"}
    assert states == []


def test_a_version_that_a_server_was_told_to_load_is_unloaded_once_a_swap_has_forgotten_it(
    adapters: list[Adapter], base: Path
) -> None:
    with FakeLoraServer(OpenAI().answer(HOLD)) as server:
        config = config_of(base, local={"server_url": server.url, "served_model": "base"})
        with LocalModels(config) as models:
            coordinator = Coordinator(config, local_policies=models.policy_for)
            deployment = Deployment(config, coordinator, models, lambda state: None)
            for number, adapter in enumerate(adapters):
                deployment.deploy(version_of(f"technical@{number}", adapter))
            gone = threading.Event()
            for _ in range(1000):
                if server.unloaded:
                    break
                gone.wait(0.01)
            assert (server.unloaded, list(server.adapters)) == (["technical@0"], ["technical@1"])
            coordinator.close()
