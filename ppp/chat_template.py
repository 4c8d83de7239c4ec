"""What a chat template puts around contents, found out by rendering it: around a prompt, a turn, an observation.

Only text; tokens and contents are `codec.py`'s, which comes next. A template is rendered with marks in place of the
contents and cut there, so that contents never pass through it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ppp.call_formats import CALL_FORMATS
from ppp.types import RecipeError, ToolCall, ToolSpec

WORDS, OBSERVED = "Some words.", "observed"
PROBE = ToolCall("probe_tool", {"probe_text": "value"})
PROBE_TOOL = ToolSpec(
    PROBE.name,
    "A test.",
    {"type": "object", "properties": {"probe_text": {"type": "string"}}, "required": ["probe_text"]},
)
_MARK = "\ue000{}\ue001"  # private-use characters: templates pass them through, and nothing strips them
_MARKS = re.compile("\ue000([0-9]+)\ue001")
_NOT_OPTIONS = ("messages", "tools", "add_generation_prompt")  # what a template is given anyway
_PROBE_TOOLS_JSON = json.dumps([PROBE_TOOL.as_openai()])


class ChatTemplate:
    """A tokenizer's chat template for one dialect of tool calls.

    Args:
        tokenizer: with a chat template and an EOS token.
        call_format: a key of `CALL_FORMATS`.
        options: variables of the template, such as "enable_thinking" or "thinking_budget".

    Attributes:
        opens_thought: the generation prompt ends inside a thought, so that a turn begins there.
        lead: what stands before the text of a turn without a thought.
        gap: what stands between the text of a turn and its call.
        probe: what a prompt, a turn and an observation, which `probe_conversation` holds, must make together.

    Raises:
        RecipeError: the template does not know an option, cannot show tools, calls or tool messages, or ends turns with
            another token than EOS.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, call_format: str, options: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._format = CALL_FORMATS[call_format]
        self._options = dict(options)
        self.where = f"tokenizer: the chat template of {tokenizer.name_or_path!r}"
        self.opens_thought, self.lead, self.gap = False, "", ""
        self._check_options()
        messages = probe_conversation(WORDS, OBSERVED, PROBE.name)
        try:
            prompt = self._render(messages[:2], _PROBE_TOOLS_JSON)
            asked = self._render(messages[:2], _PROBE_TOOLS_JSON, prompt=False)
            self.probe = self._learn_turn(asked, prompt, self._render(messages, _PROBE_TOOLS_JSON))
            self.frame(PROBE.name)
        except (TemplateError, ValueError, TypeError) as error:
            raise RecipeError(
                f"{self.where} cannot show a call in the format {call_format!r} and a tool message, or does not end "
                f"turns with the EOS token {tokenizer.eos_token!r} ({error}); allowed are templates that do"
            ) from error
        unnamed = [name for name in (PROBE.name, *PROBE.arguments) if name not in prompt]
        if self._format.shows_tools and unnamed:
            raise RecipeError(
                f"{self.where} does not show the agent its tools: the prompt of a session with a tool {PROBE.name!r} "
                f"leaves out {' and '.join(map(repr, unnamed))}; allowed are templates that render `tools` with names "
                "and parameters"
            )

    def skeleton(self, roles: tuple[str, ...], tools_json: str) -> tuple[str, ...]:
        """The text around the contents of a prompt: [text, number of a content, text, number, ..., text]."""
        messages = [{"role": role, "content": _MARK.format(number)} for number, role in enumerate(roles)]
        return tuple(_MARKS.split(self._render(messages, tools_json)))

    def frame(self, name: str) -> tuple[str, str]:
        """The text before and behind an observation: from the end of the turn on, up to where the next turn begins."""
        text = self._render(probe_conversation(_MARK.format(1), _MARK.format(2), name), _PROBE_TOOLS_JSON)
        eos = str(self._tokenizer.eos_token)
        before, after = text[text.index(eos, text.index(_MARK.format(1))) + len(eos) :].split(_MARK.format(2))
        return before, after

    def _render(self, messages: list[dict[str, Any]], tools_json: str, *, prompt: bool = True) -> str:
        return self._tokenizer.apply_chat_template(
            messages,
            tools=json.loads(tools_json) or None,
            tokenize=False,
            add_generation_prompt=prompt,
            **self._options,
        )

    def _check_options(self) -> None:
        template = str(self._tokenizer.chat_template)
        for name in self._options:
            if name in _NOT_OPTIONS or re.search(rf"\b{re.escape(name)}\b", template) is None:
                raise RecipeError(f"chat_template_kwargs: {name!r} is not allowed; {self.where} has no such variable")

    def _learn_turn(self, asked: str, prompt: str, whole: str) -> str:
        """Find out how the template begins and joins a turn; returns `probe`.

        A thought that the generation prompt opens, or skips by an empty one, may be missing where the template shows
        the turn as history. Ours stays: it is what the policy saw.

        Args:
            asked: the request, rendered without the generation prompt.
            prompt: the same with it.
            whole: prompt, a turn without a thought, an observation, and the next generation prompt.

        Raises:
            ValueError: the texts do not continue one another.
        """
        opening, closing = self._format.thought_opening, self._format.thought_closing
        if not prompt.startswith(asked):
            raise ValueError("its generation prompt does not follow the messages")
        header = asked + prompt[len(asked) :].partition(opening)[0]
        thought = prompt[len(header) :]
        self.opens_thought = thought.rfind(opening) > thought.rfind(closing)
        shows_thought = whole.startswith(prompt)
        if not shows_thought and not whole.startswith(header):
            raise ValueError("what it puts before a turn changes once the turn is history")
        start = len(prompt if shows_thought else header)
        words = whole.index(WORDS, start)
        self.lead = whole[start:words] if shows_thought or not self.opens_thought else f"\n{_closings(thought)}\n\n"
        self.gap = whole[words + len(WORDS) : whole.index(self._format.opening, words)]
        return prompt + self.lead + whole[words:]


def _closings(text: str) -> str:
    """The tags that end what is open in `text`, innermost first: "<a><b>" -> "</b></a>"."""
    names: list[str] = []
    for slash, name in re.findall(r"<(/?)([\w:]+)>", text):
        if not slash:
            names.append(name)
        elif name in names:
            names.remove(name)
    return "".join(f"</{name}>" for name in reversed(names))


def probe_conversation(words: str, observation: str, name: str) -> list[dict[str, Any]]:
    """System, user, a turn with a call, a tool message; the ids are for templates that insist on them."""
    function = {"name": name, "arguments": dict(PROBE.arguments)}
    call = {"id": "call00000", "type": "function", "function": function}
    return [
        {"role": "system", "content": "A system prompt."},
        {"role": "user", "content": "A request."},
        {"role": "assistant", "content": words, "tool_calls": [call]},
        {"role": "tool", "content": observation, "name": name, "tool_call_id": "call00000"},
    ]
