"""Messages <-> tokens: the prompt, the tokens of an observation, and the reading of a turn.

Token streams are append-only: history is never rendered again. The text around contents comes from `chat_template.py`,
once; afterwards only contents are encoded. Contents are untrusted: the text of a special token inside them is encoded
as plain text and cannot close a turn. How a call is written is in `call_formats.py`; `rollout.py` comes next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from ppp.call_formats import CALL_FORMATS, detect
from ppp.call_formats import check_tools as check_format_carries
from ppp.chat_template import OBSERVED, PROBE, PROBE_TOOL, WORDS, ChatTemplate, probe_conversation
from ppp.encoder import Encoder, Segment, clean
from ppp.turn_reader import ParsedTurn, read_turn
from ppp.types import RecipeError, ToolCall, ToolSpec

_TOOL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_CUT = "\n[... {} tokens cut here ...]\n"


class Codec:
    """One tokenizer with its chat template and one dialect of tool calls; safe to share between threads.

    Args:
        tokenizer: a fast tokenizer with a chat template, an EOS token that ends assistant turns, and a pad token.
        call_format: a key of `CALL_FORMATS`.
        template_options: variables of the chat template, such as "enable_thinking" or "thinking_budget".

    Raises:
        RecipeError: the tokenizer or its template cannot be used.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        call_format: str,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        if call_format not in CALL_FORMATS:
            raise RecipeError(f"call_format: {call_format!r} is not known; allowed are {sorted(CALL_FORMATS)}")
        for name, value in (
            ("a chat template", tokenizer.chat_template),
            ("an EOS token", tokenizer.eos_token),
            ("a pad token", tokenizer.pad_token),
        ):
            if value is None:
                raise RecipeError(
                    f"tokenizer: {tokenizer.name_or_path!r} has no {name.split(maxsplit=1)[1]}; set {name}"
                )
        if not tokenizer.is_fast:
            raise RecipeError(f"tokenizer: {tokenizer.name_or_path!r} is a slow tokenizer; a fast one is needed")
        self.tokenizer = tokenizer
        self.call_format = call_format
        self.eos_id: int = tokenizer.eos_token_id
        self.pad_id: int = tokenizer.pad_token_id
        self._format = CALL_FORMATS[call_format]
        self._template = ChatTemplate(tokenizer, call_format, template_options or {})
        self._encoder = Encoder(tokenizer)
        self._skeleton = lru_cache(maxsize=64)(self._template.skeleton)
        self._cached_prompt = lru_cache(maxsize=256)(self._encode_prompt)
        self._frame = lru_cache(maxsize=256)(self._encode_frame)
        self._check_append_only()

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        call_format: str | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> Codec:
        """A codec whose dialect is told from the chat template unless it is named.

        Raises:
            RecipeError: as the class, or the dialect cannot be told.
        """
        template = tokenizer.chat_template
        if call_format is None and isinstance(template, str):
            call_format = detect(template)
            if call_format is None:
                raise RecipeError(
                    f"call_format: the chat template of {tokenizer.name_or_path!r} does not tell how calls are written;"
                    f" set one of {sorted(CALL_FORMATS)}"
                )
        return cls(tokenizer, call_format or "hermes", template_options)

    # --- writing -----------------------------------------------------------------------------------------------------

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """The tokens of a conversation of plain contents ("system", "user"), ready for the agent's first token.

        The last prompts are remembered, so that the copies of one task are encoded once.
        """
        tools_json = json.dumps([tool.as_openai() for tool in tools])
        contents = tuple((message["role"], message["content"]) for message in messages)
        return list(self._cached_prompt(contents, tools_json))

    def suffix_ids(self, observation: str, *, closed: bool, name: str) -> list[int]:
        """The tokens that follow an agent turn: the tool message and the next generation prompt.

        Args:
            observation: untrusted text.
            closed: whether the turn ended with the end-of-turn token; if not, one comes first.
            name: the tool that answered, for templates that show it; untrusted.
        """
        head, before, after, tail = self._frame(name if _TOOL_NAME.fullmatch(name) else "tool")
        start = [] if closed else [self.eos_id]
        return [*start, *head, *self._encoder.encode_content(before + clean(observation) + after), *tail]

    def render_turn(self, text: str, call: ToolCall | None) -> list[int]:
        """The tokens of a turn that says `text` and makes `call`, closed; what `parse` reads back.

        Raises:
            ValueError: the call cannot be written in this dialect.
        """
        segments: list[Segment] = [(self._template.lead, True), (text, False)]
        if call is not None:
            segments += [(self._template.gap if text else "", False), *self._format.write(call, self._format)]
        return [*self._encoder.encode(segments), self.eos_id]

    def truncate(self, text: str, max_tokens: int) -> str:
        """`text`, or its beginning and end with a mark between them, in at most `max_tokens` tokens.

        Where there is no room for the mark, the beginning alone.
        """
        text = clean(text)
        if len(text.encode()) <= max_tokens:  # no token is shorter than a byte
            return text
        spans = self._encoder.spans(text)
        if len(spans) <= max_tokens:
            return text
        mark = _CUT.format(len(spans) - max_tokens)
        for between, num_kept in ((mark, max_tokens - len(self._encoder.encode_content(mark))), ("", max_tokens)):
            while num_kept > 0:
                num_tail = num_kept // 2 if between else 0
                # From the first token that is left out to the last one: a character of several tokens goes as a whole.
                head, tail = text[: spans[num_kept - num_tail][0]], text[spans[-num_tail - 1][1] :] if num_tail else ""
                num_over = len(self._encoder.encode_content(head + between + tail)) - max_tokens
                if num_over <= 0:
                    return head + between + tail
                num_kept -= num_over  # tokens merge differently at the cuts; seldom, and by one or two
        return ""

    # --- reading -----------------------------------------------------------------------------------------------------

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special tokens included."""
        return self._encoder.decode(token_ids)

    def parse(self, token_ids: Sequence[int], tools: Sequence[ToolSpec] = ()) -> ParsedTurn:
        """Read one turn of the policy; never raises, whatever the tokens are.

        A turn acts through exactly one call, outside of thoughts, and only if it is closed.

        Args:
            token_ids: as generated, with the end-of-turn token if there was one.
            tools: whose schemas give the types of arguments that the dialect writes as plain text.
        """
        closed = bool(token_ids) and token_ids[-1] == self.eos_id
        text = self.decode(token_ids[:-1] if closed else token_ids)
        if self._template.opens_thought:
            text = self._format.thought_opening + text
        return read_turn(text, self._format, tools, closed=closed)

    # --- templates ---------------------------------------------------------------------------------------------------

    def _encode_prompt(self, contents: tuple[tuple[str, str], ...], tools_json: str) -> tuple[int, ...]:
        skeleton = self._skeleton(tuple(role for role, _ in contents), tools_json)
        segments: list[Segment] = []
        for position, part in enumerate(skeleton):
            segments.append((part, True) if position % 2 == 0 else (contents[int(part)][1].strip(), False))
        return tuple(self._encoder.encode(segments))

    def _encode_frame(self, name: str) -> tuple[list[int], str, str, list[int]]:
        """What stands around an observation: tokens, text up to it, text from it on, tokens.

        The text that touches the observation is encoded together with it, as the template's whole text would be.
        """
        before, after = self._template.frame(name)
        tokens_before = list(self._encoder.added_pattern.finditer(before))
        first_after = self._encoder.added_pattern.search(after)
        cut_before = tokens_before[-1].end() if tokens_before else 0
        cut_after = first_after.start() if first_after else len(after)
        head = self._encoder.encode([(before[:cut_before], True)])
        return head, before[cut_before:], after[:cut_after], self._encoder.encode([(after[cut_after:], True)])

    def _check_append_only(self) -> None:
        """Write one turn, read it, and compare prompt, turn and suffix with what the template makes of the whole.

        Raises:
            RecipeError: they differ, or the turn is not read as it was written.
        """
        messages = probe_conversation(WORDS, OBSERVED, PROBE.name)
        turn = self.render_turn(WORDS, PROBE)
        ours = self.prompt_ids(messages[:2], (PROBE_TOOL,)) + turn
        ours += self.suffix_ids(OBSERVED, closed=True, name=PROBE.name)
        theirs = self._encoder.encode([(self._template.probe, True)])
        is_spelled = PROBE.name in self.decode(turn)  # a tokenizer of few words may lack it
        is_misread = is_spelled and self.parse(turn, (PROBE_TOOL,)).call != PROBE
        if self.decode(ours) != self.decode(theirs) or is_misread:
            raise RecipeError(
                f"{self._template.where} is not append-only in the call format {self.call_format!r}: it renders\n"
                f"{self.decode(theirs)[-300:]!r}\nwhere prompt, turn and observation make\n{self.decode(ours)[-300:]!r}"
            )

    @staticmethod
    def check_tools(call_format: str, tools: Sequence[ToolSpec]) -> None:
        """Raise `RecipeError` for a tool that the dialect cannot call."""
        check_format_carries(call_format, tools)
