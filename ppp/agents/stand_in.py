"""Tokens for turns that were never tokens: they say how much was said, not what.

The limits of a session are in tokens of the policy that a recipe trains. An agent that speaks messages has a tokenizer
of its own, which nobody here knows, so four bytes of text count as one token, wherever a limit on prompt, observation
or completion is kept. `engine.py` comes next.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ppp.codec import Codec
from ppp.encoder import clean
from ppp.tiny_model import byte_tokenizer
from ppp.types import ToolCall, ToolSpec

BYTES_PER_TOKEN = 4  # about what tokenizers make of English and of source code
_CUT = "\n[... {} tokens cut here ...]\n"


class StandInCodec(Codec):
    """Counts text, in steps of `BYTES_PER_TOKEN` bytes, and writes as many tokens that stand for nothing."""

    def __init__(self) -> None:
        super().__init__(byte_tokenizer(), "hermes")
        (self._stand_in,) = self.tokenizer.encode("_", add_special_tokens=False)

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """As many tokens as the messages take; how tools are shown, if at all, is a matter of each model."""
        return self._tokens(sum(len(clean(message["content"]).encode()) for message in messages))

    def suffix_ids(self, observation: str, *, closed: bool, name: str) -> list[int]:
        """As many tokens as an observation takes."""
        return self._tokens(len(clean(observation).encode()))

    def render_turn(self, text: str, call: ToolCall | None) -> list[int]:
        """As many tokens as what is said and the arguments of the call take, and one that ends the turn."""
        arguments = "" if call is None else call.name + json.dumps(dict(call.arguments), ensure_ascii=False)
        return [*self._tokens(len(clean(text + arguments).encode())), self.eos_id]

    def truncate(self, text: str, max_tokens: int) -> str:
        """`text`, or its beginning and end with a mark between them; where there is no room for the mark, its
        beginning."""
        data, most = clean(text).encode(), max_tokens * BYTES_PER_TOKEN
        if len(data) <= most:
            return clean(text)
        mark = _CUT.format(_num_tokens(len(data) - most))
        room = most - len(mark)
        if room < 2:
            return data[:most].decode("utf-8", "ignore")
        head, tail = data[: room - room // 2], data[-(room // 2) :]
        return head.decode("utf-8", "ignore") + mark + tail.decode("utf-8", "ignore")

    def _check_append_only(self) -> None:
        """Nothing to check: these tokens are never read."""

    def _tokens(self, num_bytes: int) -> list[int]:
        return [self._stand_in] * max(1, _num_tokens(num_bytes))


def _num_tokens(num_bytes: int) -> int:
    return -(-num_bytes // BYTES_PER_TOKEN)
