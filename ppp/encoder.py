"""Text -> tokens, where some text is markup of ours and some is content that nobody vouches for.

Knows nothing of messages or templates; `codec.py` comes next.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

Segment = tuple[str, bool]
"""Text and whether it is markup (True: added tokens in it are meant) or content (False: they are not)."""


def clean(text: str) -> str:
    """Replace lone surrogates (odd file names, JSON escapes), which no tokenizer takes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


class Encoder:
    """A fast tokenizer without its overhead, for which the text of a special token in content is only text.

    Attributes:
        added_pattern: finds added tokens (special ones and tags) in markup.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # A copy: whoever calls `tokenizer(..., truncation=True)` leaves that setting behind in the backend.
        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        self._added = {token.content: index for index, token in self._backend.get_added_tokens_decoder().items()}
        longest_first = sorted(self._added, key=len, reverse=True)
        self.added_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # Tokens for runs of white space and the like are no markup; content may keep them.
        guarded = [
            token.content
            for token in self._backend.get_added_tokens_decoder().values()
            if len(token.content) > 1 and (token.special or token.content[0] in "<[")
        ]
        self._guarded_pattern = re.compile("|".join(map(re.escape, sorted(guarded, key=len, reverse=True))) or "(?!)")

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special tokens included."""
        return self._backend.decode(list(token_ids), skip_special_tokens=False)

    def encode(self, segments: Sequence[Segment]) -> list[int]:
        """Encode markup and content: added tokens are recognised in markup alone; the text between them is one run."""
        ids: list[int] = []
        run: list[str] = []
        for text, is_markup in segments:
            position = 0
            if is_markup:
                for found in self.added_pattern.finditer(text):
                    run.append(text[position : found.start()])
                    ids += self.encode_content("".join(run))
                    run.clear()
                    ids.append(self._added[found[0]])
                    position = found.end()
            run.append(text[position:])
        return ids + self.encode_content("".join(run))

    def encode_content(self, text: str) -> list[int]:
        """Encode text as it stands: where it spells an added token, it is cut behind that one's first letter."""
        text = clean(text)
        if self._guarded_pattern.search(text) is None:
            return self._encode_piece(text).ids if text else []
        return [token for _, piece in self._pieces(text) for token in self._encode_piece(piece).ids]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """For each token of `encode_content(text)`, which characters it stands for."""
        offsets = [(start, self._encode_piece(piece).offsets) for start, piece in self._pieces(text)]
        return [(start + first, start + last) for start, spans in offsets for first, last in spans]

    def _pieces(self, text: str) -> Iterator[tuple[int, str]]:
        """Cut text so that no piece spells an added token; with the position of each piece."""
        position = 0
        while (found := self._guarded_pattern.search(text, position)) is not None:
            yield position, text[position : found.start() + 1]
            position = found.start() + 1
        yield position, text[position:]

    def _encode_piece(self, piece: str) -> Encoding:
        return self._backend.encode(piece, add_special_tokens=False)
