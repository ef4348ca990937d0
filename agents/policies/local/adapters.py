"""LoRA adapters side by side on one base model: read from disk, put on, chosen row by row, taken off.

`read_adapter` may run in any thread beside a generation; `AdapterShelf` belongs to the thread that owns the model. Weights
are never merged into the base, so every version stays exactly what was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.policies.local.engine import Adapter
from utils.artifacts import ArtifactCorrupt, verify
from utils.errors import ProviderError

if TYPE_CHECKING:
    import torch

_UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "trainable_token_indices",
    "layer_replication",
    "target_parameters",
    "alora_invocation_tokens",
    "lora_bias",
)
"""Settings of a LoRA that change more than linear layers, or that rows of a mixed batch cannot have apart."""


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """An adapter in memory, checked and on the model's device: `config` for PEFT and tensors by name."""

    config: Any
    tensors: dict[str, torch.Tensor]


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
    if manifest.meta.get("base_sha256") != base_sha256:
        raise ProviderError(f"version {version} is not loaded: this is not the base model it was trained on")
    from peft import PeftConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = PeftConfig.from_pretrained(str(adapter.folder), local_files_only=True)
        stored = load_file(adapter.folder / "adapter_model.safetensors", device="cpu")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ProviderError(f"version {version} is not loaded: {error}") from error
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind != "LORA":
        raise ProviderError(f"version {version} is not loaded: its peft_type is {kind}, only LORA is served")
    for field in _UNSUPPORTED:
        if getattr(config, field, None):
            raise ProviderError(
                f"version {version} is not loaded: an adapter with {field} is not served; train without"
            )
    if config.bias != "none":
        raise ProviderError(f"version {version} is not loaded: bias {config.bias!r} changes the base; train with none")
    config.inference_mode = True
    return AdapterWeights(config, {name: tensor.to(device, dtype) for name, tensor in stored.items()})


class AdapterShelf:
    """The adapters on one causal LM.

    Parameters
    ----------
    model : PreTrainedModel
    device : str
    dtype : torch.dtype
        Adapters compute in the model's precision.
    """

    def __init__(self, model: Any, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._model: Any = model
        self._peft: Any = None
        self._slots: dict[str, str] = {}
        self._active: str | None = None
        self._made = 0

    def add(self, version: str, weights: AdapterWeights) -> None:
        """Put an adapter on the model, beside the others.

        Raises
        ------
        ProviderError
            If its tensors do not fit the model; the others are as before.
        """
        from peft import get_peft_model, set_peft_model_state_dict

        self._made += 1
        slot = f"v{self._made:06d}"  # versions may hold dots, which module names must not
        options = {"low_cpu_mem_usage": True, "autocast_adapter_dtype": False}
        try:
            if self._peft is None:
                self._peft = get_peft_model(self._model, weights.config, adapter_name=slot, **options)
                self._peft.eval()
            else:
                self._peft.add_adapter(slot, weights.config, **options)
            result = set_peft_model_state_dict(self._peft, weights.tensors, adapter_name=slot, low_cpu_mem_usage=True)
            empty = [name for name, p in self._peft.named_parameters() if p.is_meta and f".{slot}." in name]
            if result.unexpected_keys or empty:
                raise ValueError(f"tensors too many: {result.unexpected_keys[:3]}, missing: {empty[:3]}")
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            self._take_off(slot)
            raise ProviderError(f"version {version} does not fit the base model: {error}") from error
        self._slots[version] = slot
        self._peft.set_requires_grad(slot, False)

    def remove(self, version: str) -> None:
        """Take an adapter off; with the last one the model is bare again."""
        self._take_off(self._slots.pop(version))

    def callable_for(self, versions: Sequence[str | None]) -> Callable[..., Any]:
        """Return the forward function of a batch whose rows are of these versions; None is the base model.

        Raises
        ------
        ProviderError
            Of kind closed, if a version is not there.
        """
        missing = [version for version in dict.fromkeys(versions) if version is not None and version not in self._slots]
        if missing:
            raise ProviderError(f"version {missing[0]} was closed", kind="closed")
        if self._peft is None:
            return self._model  # type: ignore[no-any-return]
        first = versions[0]
        if first is not None and all(version == first for version in versions):
            self._activate(self._slots[first])
            return self._model  # type: ignore[no-any-return]
        names = ["__base__" if version is None else self._slots[version] for version in versions]
        return lambda **inputs: self._peft(**inputs, adapter_names=names)

    def close(self) -> None:
        """Let go of the model."""
        self._model = self._peft = self._active = None
        self._slots.clear()

    def _activate(self, slot: str) -> None:
        if self._active != slot:
            self._peft.set_adapter(slot, inference_mode=True)
            self._active = slot

    def _take_off(self, slot: str) -> None:
        """Remove every trace of an adapter, even one that was put on by half."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [(name, m) for name, m in self._model.named_modules() if isinstance(m, BaseTunerLayer)]
        others = [other for other in self._slots.values() if other != slot]
        if not others:
            for name, layer in layers:
                self._model.set_submodule(name, layer.get_base_layer())
            if hasattr(self._model, "peft_config"):
                del self._model.peft_config
            self._peft = self._active = None
            return
        self._activate(others[0])  # PEFT would choose another active one by itself, and make it trainable
        self._peft.peft_config.pop(slot, None)
        for _, layer in layers:
            layer.delete_adapter(slot)
