"""A fake of an OpenAI-compatible server of one's own that takes LoRA adapters in by name while it runs, as vLLM does.

Paths, replies and refusals are those of vLLM's API server; tests of served adapters ask it over real sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fakes.dialect import Question
from fakes.http_server import Reply, Request, json_reply
from fakes.vendors import Behaviour, FakeOpenAI


class FakeLoraServer(FakeOpenAI):
    """One base model, and adapters that are loaded by name while it runs.

    Parameters
    ----------
    behaviours : mapping, optional
        Of single models; all others do as `behaviour`.
    adapters : mapping, optional
        From names to folders: what an operator loaded at the start.
    base_model, base_root : str
        The base model's name, and where its weights come from.
    runtime_loading : bool
        Whether the server was started with the permission to load adapters; without it the addresses do not exist.
    context_tokens : int, optional
        What the server says of its context.

    Attributes
    ----------
    loaded, unloaded : list of str
        Names in the order in which the server was told so, those it refused not among them.
    adapters : dict
        What is loaded now; a test may take some away, as a restart does.
    """

    def __init__(
        self,
        *arguments: Any,
        behaviours: Mapping[str, Behaviour | Reply] | None = None,
        adapters: Mapping[str, str] | None = None,
        base_model: str = "base",
        base_root: str = "/models/base",
        runtime_loading: bool = True,
        context_tokens: int | None = None,
        **options: Any,
    ) -> None:
        self.behaviours = dict(behaviours or {})
        self.adapters = dict(adapters or {})
        self.base_model = base_model
        self.base_root = base_root
        self.runtime_loading = runtime_loading
        self.context_tokens = context_tokens
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        super().__init__(*arguments, **options)

    def _reply(self, request: Request) -> Reply:
        key = self.dialect.key(request)
        if self.key is not None and key != self.key:
            return self.dialect.fault("bad_key")
        match request.method, request.path:
            case "GET", "/v1/models":
                return self._list()
            case "POST", "/v1/load_lora_adapter" if self.runtime_loading:
                return self._load(request.json)
            case "POST", "/v1/unload_lora_adapter" if self.runtime_loading:
                return self._unload(request.json)
            case "POST", "/v1/chat/completions":
                return self._asked(request)
        return json_reply({"detail": "Not Found"}, 404)

    def _asked(self, request: Request) -> Reply:
        model = request.json.get("model")
        if model != self.base_model and model not in self.adapters:
            return lora_error(404, f"The model `{model}` does not exist.", "NotFoundError")
        return self._complete(request)

    def _answer_of(self, question: Question) -> Behaviour | Reply:
        return self.behaviours.get(question.model, self.behaviour)

    def _list(self) -> Reply:
        def card(name: str, root: str, parent: str | None, context_tokens: int | None) -> dict[str, Any]:
            return {"id": name, "object": "model", "root": root, "parent": parent, "max_model_len": context_tokens}

        base = card(self.base_model, self.base_root, None, self.context_tokens)
        loaded = [card(name, folder, self.base_model, None) for name, folder in self.adapters.items()]
        return json_reply({"object": "list", "data": [base, *loaded]})

    def _load(self, body: Any) -> Reply:
        name, folder = body.get("lora_name"), body.get("lora_path")
        if not name or not folder:
            return lora_error(400, "Both 'lora_name' and 'lora_path' must be provided.", "InvalidUserInput")
        if name in self.adapters:
            return lora_error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if not (Path(folder) / "adapter_config.json").is_file():
            return lora_error(404, f"Loading lora {name} failed: No adapter found for {folder}", "NotFoundError")
        self.adapters[name] = folder
        self.loaded.append(name)
        return Reply(200, f"Success: LoRA adapter '{name}' added successfully.".encode(), "text/plain")

    def _unload(self, body: Any) -> Reply:
        name = body.get("lora_name")
        if name not in self.adapters:
            return lora_error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.adapters[name]
        self.unloaded.append(name)
        return Reply(200, f"Success: LoRA adapter '{name}' removed successfully.".encode(), "text/plain")


def lora_error(status: int, message: str, kind: str = "BadRequestError") -> Reply:
    """Return an error as vLLM words it: OpenAI's envelope with the status as the code."""
    return json_reply({"error": {"message": message, "type": kind, "param": None, "code": status}}, status)
