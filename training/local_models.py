"""Local models ready to think: the base model, the engine that runs it, and a policy for each version and seat.

The daemon, `training.compare` and notebooks open one `LocalModels` and ask it for policies. It builds or finds the base model
when it is first needed and imports a model library only then; what is better is decided elsewhere.
"""

from __future__ import annotations

import threading

from agents.policies.base import Policy
from agents.policies.local.engine import Adapter, AnswerEngine
from agents.policies.local.policy import LocalModelPolicy
from agents.policies.local.states import StateWriter
from training.base_models import resolve_base_model
from training.model_registry import ModelVersion
from training.small_base_model import StepProgress
from utils.artifacts import ArtifactCorrupt, read_manifest
from utils.errors import ProviderError, TrainingFailed
from utils.schema import AgentType
from utils.settings import OrchestratorConfig
from utils.telemetry import NO_TELEMETRY, Telemetry


class LocalModels:
    """The local models of a configuration; a context manager.

    Parameters
    ----------
    config : OrchestratorConfig
        Sections `local` and `learning.base_model`.
    live : bool
        Whether questions of several callers may be generated together, and an agent's timeout holds. In a replay neither,
        so that no answer depends on how threads met or how fast the machine is; a server's answers have the timeout always.
    on_step : callable, optional
        Progress while the small base model is built.
    """

    def __init__(
        self,
        config: OrchestratorConfig,
        *,
        live: bool = False,
        on_step: StepProgress | None = None,
        telemetry: Telemetry = NO_TELEMETRY,
    ) -> None:
        self._config = config
        self._live = live
        self._on_step = on_step
        self._telemetry = telemetry
        self._states = StateWriter.configured(config)
        self._lock = threading.Lock()
        self._engine: AnswerEngine | None = None
        self._base = ""
        self._closed = False

    def __enter__(self) -> LocalModels:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def base_version(self) -> str:
        """Return the name of the base model as a version: of one in this process by its content, wherever the folder is.

        Raises
        ------
        ProviderError
            If the base model cannot be had or loaded.
        """
        return self._opened()[1]

    def policy_for(self, agent_type: AgentType, rules: Policy) -> Policy:
        """Return the policy of the base model itself, without any training of ours.

        Raises
        ------
        ProviderError
            If the base model cannot be had or loaded.
        """
        engine, base = self._opened()
        return self._policy(agent_type, engine, base, rules, None)

    def version_policy(self, version: ModelVersion, agent_type: AgentType, rules: Policy) -> Policy:
        """Return the policy of a trained version.

        Raises
        ------
        ProviderError
            If its bytes are not the recorded ones, the base model is not the one it was trained on, or it cannot be loaded.
        """
        engine, _ = self._opened()
        return self._policy(agent_type, engine, version.version, rules, Adapter(version.path, version.sha256))

    def close(self) -> None:
        """Free the model; may be called twice."""
        with self._lock:
            self._closed = True
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def _policy(
        self, agent_type: AgentType, engine: AnswerEngine, version: str, rules: Policy, adapter: Adapter | None
    ) -> Policy:
        served = self._config.local.server_url is not None
        source = engine.open(version, adapter)  # which has checked every byte of the adapter
        try:
            reads = adapter is not None and bool(read_manifest(adapter.folder).meta.get("reads_experiences", False))
        except ArtifactCorrupt as error:
            source.close()
            raise ProviderError(f"version {version} is not loaded: {error}") from error
        return LocalModelPolicy(
            agent_type, source, rules, self._states, reads_experiences=reads,
            deadline_s=self._config.agent(agent_type).timeout_s if self._live or served else None,
            telemetry=self._telemetry,
        )  # fmt: skip

    def _opened(self) -> tuple[AnswerEngine, str]:
        """Return the engine and the name of the base model as a version."""
        with self._lock:
            if self._closed:
                raise ProviderError("the local models are closed", kind="closed")
            if self._engine is None:
                self._engine, self._base = self._served() if self._config.local.server_url else self._in_process()
            return self._engine, self._base

    def _in_process(self) -> tuple[AnswerEngine, str]:
        from agents.policies.local.model import LocalModel
        from agents.policies.local.server import LocalInferenceServer

        config, settings = self._config, self._config.local
        try:
            folder, sha256 = resolve_base_model(
                config.learning.base_model, config.base_model_cache, progress=self._on_step
            )
            model = LocalModel(folder, settings.device, settings.dtype, settings.quantization, sha256)
        except (TrainingFailed, OSError) as error:
            raise ProviderError(f"no local model: {error}") from error
        except ImportError as error:
            raise ProviderError(f"no local model: {error}; install stock-agents[training]") from error
        window_s = settings.merge_window_ms / 1000 if self._live else None
        server = LocalInferenceServer(
            model, merge_window_s=window_s, max_batch=settings.max_batch, telemetry=self._telemetry
        )
        return server, f"base@{sha256[:12]}"

    def _served(self) -> tuple[AnswerEngine, str]:
        from agents.policies.local.served import ServedModel

        settings = self._config.local
        name = settings.served_model or self._config.learning.base_model
        key = self._config.local_server_api_key
        assert settings.server_url is not None
        server = ServedModel(
            settings.server_url, name, api_key=key.get_secret_value() if key else None, telemetry=self._telemetry
        )
        return server, name
