"""JSON schemas as constraints on tokens: which may come next, and which must.

`decoding.generate` walks one `Walk` an answer. Compiled grammars are kept by schema, so a schema costs once; nothing here
knows of weights or devices.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.errors import ProviderError

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEPT_GRAMMARS = 256
"""Compiled schemas that are kept, the most recently used ones: some kilobytes each."""


class Walk:
    """One answer's way through its grammar.

    Attributes
    ----------
    matcher : LLMatcher
    tokens : list of int
        Written so far, a closing end-of-text token left out.
    finished : bool
        The object is complete and nothing may follow it.
    """

    __slots__ = ("_eos", "finished", "matcher", "tokens")

    def __init__(self, matcher: Any, eos_tokens: frozenset[int]) -> None:
        self.matcher = matcher
        self.tokens: list[int] = []
        self.finished = False
        self._eos = eos_tokens

    def choose(self, token: int) -> list[int]:
        """Take a token that the model chose and return it with all that the grammar forces behind it.

        Raises
        ------
        ProviderError
            If the grammar does not allow the token, which only logits that are not finite can lead to.
        """
        if token in self._eos and self.matcher.is_accepting():
            self.finished = True
            return []
        if not self.matcher.consume_token(token):
            raise ProviderError(f"the local model chose a token outside the schema: {self.matcher.get_error()}")
        self.tokens.append(token)
        return [token, *self.forced()]

    def forced(self) -> list[int]:
        """Take the tokens that nothing but the grammar decides, as the tokenizer writes them, and return them."""
        tokens: list[int] = self.matcher.compute_ff_tokens()
        if tokens and not self.matcher.consume_tokens(tokens):
            raise ProviderError(f"the grammar refuses what it forces: {self.matcher.get_error()}")
        self.tokens += tokens
        if self.matcher.is_error():
            raise ProviderError(f"the schema cannot be followed any further: {self.matcher.get_error()}")
        self.finished = self.matcher.is_stopped()
        return tokens


class Grammars:
    """Compiles schemas for one tokenizer.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    vocabulary : int
        Columns of the model's logits; may exceed what the tokenizer knows.
    eos_tokens : sequence of int
        What ends an answer.
    threads : int, optional
        That compute masks of a batch; None takes most cores.

    Raises
    ------
    ProviderError
        If the tokenizer cannot be taken over.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, eos_tokens: Sequence[int], threads: int | None) -> None:
        import llguidance.hf

        try:
            self._tokens = llguidance.hf.from_tokenizer(
                tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=list(eos_tokens)
            )
        except (ValueError, RuntimeError) as error:
            raise ProviderError(f"the tokenizer cannot constrain answers to a schema: {error}") from error
        self._executor = llguidance.LLExecutor(threads)
        self._eos = frozenset(eos_tokens)
        self._columns = vocabulary
        self._compiled: OrderedDict[str, Any] = OrderedDict()

    def walk(self, schema: Mapping[str, Any]) -> Walk:
        """Begin an answer.

        Raises
        ------
        ProviderError
            Of kind request, if the schema cannot be compiled.
        """
        text = json.dumps(schema)
        compiled = self._compiled.get(text)
        if compiled is None:
            compiled = self._compile(text)
            self._compiled[text] = compiled
            if len(self._compiled) > KEPT_GRAMMARS:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(text)
        return Walk(compiled.deep_copy(), self._eos)

    def masks(self, walks: Sequence[Walk]) -> NDArray[np.int32]:
        """Return which tokens may come next, one bit each, lowest first; shape (walks, columns / 32 rounded up)."""
        from llguidance.numpy import fill_next_token_bitmask_par

        words = -(-max(self._columns, self._tokens.vocab_size) // 32)
        masks = np.zeros((len(walks), words), dtype=np.int32)
        fill_next_token_bitmask_par(self._executor, [(walk.matcher, row) for row, walk in enumerate(walks)], masks)
        return masks

    def text(self, walk: Walk) -> str:
        """Return what was written, byte for byte what the grammar accepted."""
        written: bytes = self._tokens.decode_bytes(walk.tokens)
        return written.decode("utf-8")

    def _compile(self, schema: str) -> Any:
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_flexible": False})
        matcher = LLMatcher(self._tokens, grammar, log_level=0)
        if matcher.is_error():
            raise ProviderError(f"the schema of an answer cannot be compiled: {matcher.get_error()}", kind="request")
        return matcher
