"""LoRA adapters side by side on one base model: read from disk, put on, chosen row by row, taken off.

`read_adapter` may run in any thread beside a generation; `AdapterShelf` belongs to the thread that owns the model. Weights
are never merged into the base, and putting an adapter on touches one dictionary a layer, where PEFT walks the whole
model in Python several times while nothing can be generated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.policies.local.engine import Adapter
from utils.artifacts import ArtifactCorrupt, verify
from utils.errors import ProviderError

if TYPE_CHECKING:
    import torch

_UNSUPPORTED = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "fan_in_fan_out",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
)
"""Settings of PEFT under which an adapter is more than two factors on a linear layer."""

_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to initialise a LoRA that leave the base weights alone; PiSSA and its like change them."""

_PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of one linear layer: its output gains ``up(down(x))``, the scaling already in `up`."""

    down: torch.Tensor
    up: torch.Tensor


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """An adapter in memory, checked and on the model's device: what changes, by the name of the layer."""

    layers: Mapping[str, LowRank]


def read_adapter(adapter: Adapter, base_sha256: str, device: str, dtype: torch.dtype, version: str) -> AdapterWeights:
    """Check every byte of an adapter and load it beside the model.

    Raises
    ------
    ProviderError
        If it is not byte for byte the recorded one, belongs to another base model, or is of a kind that cannot be served.
    """
    try:
        manifest = verify(adapter.folder, adapter.sha256)
    except (ArtifactCorrupt, OSError) as error:
        raise ProviderError(f"version {version} is not loaded: {error}") from error
    if (trained_on := str(manifest.meta.get("base_sha256"))) != base_sha256:
        raise ProviderError(
            f"version {version} is not loaded: it was trained on the base model {trained_on[:12]} and this one is "
            f"{base_sha256[:12]}; set learning.base_model to that one, or train again"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((adapter.folder / "adapter_config.json").read_text(encoding="utf-8"))
        stored = load_file(adapter.folder / "adapter_model.safetensors")
        layers = _layers(config, stored, device, dtype)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise ProviderError(f"version {version} is not loaded: {error}") from error
    return AdapterWeights(layers)


def _layers(
    config: Mapping[str, Any], stored: Mapping[str, torch.Tensor], device: str, dtype: torch.dtype
) -> dict[str, LowRank]:
    """Read PEFT's format; whatever goes beyond plain LoRA is a ValueError that names the setting."""
    if config["peft_type"] != "LORA":
        raise ValueError(f"its peft_type is {config['peft_type']}, only LORA is served")
    for setting in _UNSUPPORTED:
        if config.get(setting):
            raise ValueError(f"an adapter with {setting} is not served; train without it")
    if config.get("bias", "none") != "none":
        raise ValueError(f"bias {config['bias']!r} changes the base model; train with bias none")
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        raise ValueError(f"init_lora_weights {config['init_lora_weights']!r} changes the base model; train with true")
    layers = {}
    for key in stored:
        name, _, factor = key.removeprefix(_PREFIX).partition(".lora_")
        if factor not in ("A.weight", "B.weight"):
            raise ValueError(f"the tensor {key} is not one of a plain LoRA on a linear layer")
        if factor == "A.weight":
            down, up = stored[key], stored[key.replace(".lora_A.", ".lora_B.")]
            rank = down.shape[0]
            scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
            layers[name] = LowRank(down.to(device, dtype), (up.float() * scaling).to(device, dtype))
    if 2 * len(layers) != len(stored) or not layers:
        raise ValueError(f"{len(stored)} tensors do not make pairs of factors")
    return layers


class AdapterShelf:
    """The adapters on one causal LM, and which of them each row of the next pass is answered by.

    Parameters
    ----------
    model : PreTrainedModel
    device : str
    dtype : torch.dtype
        Adapters compute in the model's precision.
    """

    def __init__(self, model: Any, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._modules = dict(model.named_modules())
        self._changes: dict[str, dict[str, LowRank]] = {}
        self._hooks: dict[str, Any] = {}
        self._versions: dict[str, AdapterWeights] = {}
        self._chosen: tuple[str | None, ...] = ()
        self._plan: list[tuple[str, torch.Tensor | None]] = []

    def add(self, version: str, weights: AdapterWeights) -> None:
        """Put an adapter on the model, beside the others.

        Raises
        ------
        ProviderError
            If it does not fit the model; nothing has changed then.
        """
        import torch

        for name, change in weights.layers.items():
            module = self._modules.get(name)
            if not isinstance(module, torch.nn.Linear):
                raise ProviderError(f"version {version} does not fit: the base model has no linear layer {name}")
            shape = (module.out_features, module.in_features)
            if (change.up.shape[0], change.down.shape[1]) != shape or change.up.shape[1] != change.down.shape[0]:
                raise ProviderError(f"version {version} does not fit: layer {name} of the base model has shape {shape}")
        for name, change in weights.layers.items():
            changes = self._changes.setdefault(name, {})
            changes[version] = change
            if name not in self._hooks:
                self._hooks[name] = self._modules[name].register_forward_hook(self._hook(changes))
        self._versions[version] = weights

    def remove(self, version: str) -> None:
        """Take an adapter off; a layer that no adapter changes is bare again."""
        for name in self._versions.pop(version).layers:
            del self._changes[name][version]
            if not self._changes[name]:
                del self._changes[name]
                self._hooks.pop(name).remove()
        self._chosen, self._plan = (), []

    def choose(self, versions: Sequence[str | None]) -> None:
        """Say which version each row of the next pass belongs to; None is the base model.

        Raises
        ------
        ProviderError
            Of kind closed, if a version is not there.
        """
        import torch

        chosen = tuple(versions)
        if chosen == self._chosen:
            return
        wanted = [version for version in dict.fromkeys(chosen) if version is not None]
        for version in wanted:
            if version not in self._versions:
                raise ProviderError(f"version {version} was closed", kind="closed")
        plan: list[tuple[str, torch.Tensor | None]] = []
        for version in wanted:
            rows = [row for row, name in enumerate(chosen) if name == version]
            everyone = len(rows) == len(chosen)
            plan.append((version, None if everyone else torch.tensor(rows, device=self.device)))
        self._chosen, self._plan = chosen, plan

    def close(self) -> None:
        """Take every adapter off and let go of the model."""
        for version in list(self._versions):
            self.remove(version)
        self._modules = {}

    def _hook(self, changes: Mapping[str, LowRank]) -> Any:
        import torch

        def add_change(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            for version, rows in self._plan:
                change = changes.get(version)
                if change is None:
                    continue
                given = inputs[0] if rows is None else inputs[0][rows]
                gain = torch.nn.functional.linear(torch.nn.functional.linear(given, change.down), change.up)
                output = output + gain if rows is None else output.index_add(0, rows, gain)
            return output

        return add_change
