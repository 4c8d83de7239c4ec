"""What an answer cost the user, found in the texts: report, question and answer. Pure functions, no model, no I/O.

What a user model says of its own effort is a claim. It is believed only where the texts leave it open, and never where
believing it would make an answer cheaper than they show. In short (`Evidence.grade`):

1. An answer, or a question that it replies to, names part of the solution that the report does not name: high.
2. A refusal: medium.
3. A reply without words of its own ("Yes.", "B") says what was asked: the report has to support that.
4. Every word of the answer stands in the report: low, whatever the model claims.
5. Some words only stand in the question: the claim decides, as long as some stand in the report.
6. Words that stand in neither: high.

Source: PPP section 2.3. Words are read in `words.py`, names in `names.py`, refusals and replies in `replies.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ppp.types import Effort, Source
from ppp.users import replies
from ppp.users.names import Match, Name, Reader, Text, asks_for_code, code_words, compact, hidden_in, matches, names_of
from ppp.users.words import Vocabulary, content_words, is_carrier, is_function_word, stem_of

TASK, UNKNOWN = "task", "unknown"  # sources that every user has, beside those of its task
TASK_LEVEL = 1

_SENTENCE_END = re.compile(r"(?<=[.?!])\s+|\n+")
_SPELLING = re.compile(
    r"\b(?:letters?|spell\w*|alphabet\w*|characters?|initials?|vowels?|consonants?|syllables?|rhym\w*|acrostic\w*"
    r"|prefix\w*|suffix\w*|(?:start|begin|end)(?:s|ning|ing)?\s+(?:with|in|on)\b.{0,20}(?:\b[a-z0-9]\b|['\"]))"
)
# "If it is split_record, tell me your version": whatever is said then says yes or no.
_CONDITION = re.compile(
    r"\b(?:if|when(?:ever)?|unless|otherwise|else|in case|provided|suppos\w+|assum\w+|depending|means?|stands? for"
    r"|signals?|se|si|wenn|falls|quando|cuando|quand)\b|如果|若"
)
_BACK_REFERENCE = re.compile(
    r"\b(?:that|this|those|these|previous|above|earlier|before|mentioned|again|sure|former|latter|first|second|third|it"
    r"|the one)\b"
)


@dataclass(frozen=True, slots=True)
class Grade:
    """What an answer cost, and who found out.

    Attributes:
        effort: of this answer.
        level: the released code's finer grade; None where it follows from the effort.
        decided_by: "evidence" where the texts decide, "judge" where the model's claim was believed.
        reason: in a few words, for logs and tests.
        unsupported: the answer has something that neither report nor question has, and is no refusal.
    """

    effort: Effort
    level: int | None
    decided_by: str
    reason: str
    unsupported: bool = False


class Evidence:
    """What one user knows, to be asked what an answer drew on.

    Args:
        precise_prompt: what the task says in full; a name that stands in it is nobody's secret.
        sources: what there is to know beyond it, whether or not this user knows it.
        said: the vague prompt: the user has said it already.
        known: the part of the precise prompt that this user remembers; all of it unless given.
        unknown_level: the released code's grade of a refusal; None where it follows from the effort.
    """

    def __init__(
        self,
        precise_prompt: str,
        sources: Sequence[Source] = (),
        *,
        said: str = "",
        known: str | None = None,
        unknown_level: int | None = 3,
    ) -> None:
        known = precise_prompt if known is None else known
        self.report = Vocabulary(known, said)
        self._report_text = Text(f"{known}\n{said}")
        self.unknown_level = unknown_level
        self.sources = {source.name: source for source in sources}
        self._vocabularies = {source.name: Vocabulary(source.text) for source in sources}
        told = (part for source in sources for part in _SENTENCE_END.split(source.text))
        self._told_by_sources = [Vocabulary(part) for part in told if part]
        whole = Text(f"{precise_prompt}\n{said}")
        self._reader = Reader(self._is_ordinary, lambda longer: longer in whole.folded)
        self._strict = Reader(self._is_ordinary, lambda longer: True)
        self.secrets: dict[Name, Match] = {}  # name -> how plainly the report has it, for those it does not give away
        for name in names_of(sources):
            if (match := matches(whole, name, self._strict)) < Match.CODE and not self._is_implied(whole, name):
                self.secrets[name] = match

    def grade(self, question: str, answer: str, claim: str, earlier_questions: Sequence[str] = ()) -> Grade:
        """What `answer` cost.

        Args:
            question: what was asked, as the user saw it.
            answer: what the user says.
            claim: where the model says that it comes from: "task", "unknown" or the name of a source.
            earlier_questions: of the same session.
        """
        if told := self.named(answer, bare=asks_for_code(question)):
            return self._high("names part of the solution", self._highest(told))
        asked_text, asked = Text(question), Vocabulary(question)
        named = self.named(question)
        if not named and _BACK_REFERENCE.search(asked_text.folded):
            named = [name for earlier in earlier_questions for name in self.named(earlier)]
        rest, refuses = replies.without_refusal(Text(answer).folded, answer)
        own = [word for word in self._core(rest) if not asked.supports(word)]
        commits = replies.affirms(rest) or replies.is_polite(rest) or bool(replies.selected(question, rest))
        if refuses and replies.tells_nothing(own) and not (commits and (named or _SPELLING.search(asked_text.folded))):
            return self._refused("refuses")
        if named:
            beside = own and not commits and not _CONDITION.search(asked_text.folded)
            if not (beside and all(map(self.report.supports, own))):
                return self._high("replies to a question that names part of the solution", self._highest(named))
        if not commits and self._is_empty(rest, claim):
            return self._refused("tells nothing")
        return self._by_words(question, rest if refuses else answer, claim, asked)

    def _is_empty(self, answer: str, claim: str) -> bool:
        """Whether an answer without a yes has nothing in it; mere frames are nothing where no source is claimed."""
        if claim in (TASK, *self.sources):
            return not self._core(answer)
        return all(is_carrier(stem_of(word)) for word in content_words(answer))

    def named(self, text: str, bare: bool = False) -> list[Name]:
        """The names of the solution in `text` that the report does not give away.

        Args:
            text: a question or an answer.
            bare: a single word in it counts as a name, because a name was asked for.
        """
        searched = Text(text)
        found = [
            name
            for name, known in self.secrets.items()
            if matches(searched, name, self._reader) > known
            or (not (known and name.is_word) and hidden_in(text, name, self._reader) > known)
        ]
        if bare:
            names = {name.compact: name for name in self.secrets if name.is_word}
            content = {compact(word): word for word in content_words(text)}
            words = {key for key, word in content.items() if key in names or not is_carrier(stem_of(word))}
            if words <= set(names):
                found += [names[word] for word in sorted(words) if names[word] not in found]
        return found

    def _by_words(self, question: str, answer: str, claim: str, asked: Vocabulary) -> Grade:
        """The grade of an answer that names nothing of the solution and refuses nothing."""
        if chosen := replies.selected(question, answer):
            answer = replies.without_labels(answer)
        if (chosen or replies.affirms(answer)) and (told := self._confirmed(question, chosen)):
            return self._high(f"says yes or no to what a source says: {', '.join(told[:5])}", self._level_of(told))
        core = self._core(answer)
        if not core:
            return self._of_assent(question, answer, chosen, claim)
        missing = [word for word in core if not self.report.supports(word)]
        new = [word for word in missing if not asked.supports(word)]
        if new:
            return self._high(f"has words of its own: {', '.join(new[:5])}", self._level_of(new), unsupported=True)
        if not missing:
            return Grade(Effort.LOW, TASK_LEVEL, "evidence", "stands in the report")
        if len(missing) == len(core):
            return self._high("repeats the question only", self._level_of(missing), unsupported=True)
        return self._claimed(claim)

    def _of_assent(self, question: str, answer: str, chosen: Sequence[str], claim: str) -> Grade:
        """The grade of a reply that has no words of its own: of what it says yes or no to, or chooses."""
        stated = " ".join(chosen) or " ".join(_asking(question)) or question
        core = self._core(stated)
        core = [word for word in core if not is_carrier(stem_of(word))] or core
        missing = [word for word in dict.fromkeys(core) if not self.report.supports(word)]
        if chosen and core and not missing:
            return Grade(Effort.LOW, TASK_LEVEL, "evidence", "chooses what stands in the report")
        if _SPELLING.search(Text(question).folded):
            return self._high("replies to a question about letters", self._highest(self.secrets), unsupported=True)
        foreign = [word for word in code_words(question) if next(self._report_text.find(compact(word)), None) is None]
        if not foreign and core and 2 * len(missing) <= len(set(core)):
            return self._claimed(claim)
        if not chosen and not replies.affirms(answer):
            return self._refused("is polite and tells nothing")
        return self._high("says yes or no to what the report does not say", self._level_of(missing), True)

    def _confirmed(self, question: str, chosen: Sequence[str]) -> list[str]:
        """What a yes, or a choice, confirms that only a source says, whatever is said beside it.

        It has to be told by one sentence of a source, and be most of what the report does not have: single words of a
        long discussion meet those of any question.
        """
        stated = " ".join(chosen) or " ".join(_asking(question)) or question
        missing = [word for word in dict.fromkeys(self._core(stated)) if not self.report.supports(word)]
        rows = ([word for word in missing if known.supports(word)] for known in self._told_by_sources)
        told = max(rows, key=len, default=[])
        return told if len(told) > (0 if chosen else 1) and 2 * len(told) > len(missing) else []

    def _claimed(self, claim: str) -> Grade:
        """What the model says of its source, where the texts do not tell."""
        if claim == TASK:
            return Grade(Effort.LOW, TASK_LEVEL, "judge", "claims the report")
        if claim in self.sources:
            return Grade(Effort.HIGH, self.sources[claim].level, "judge", f"claims {claim}")
        return Grade(Effort.MEDIUM, self.unknown_level, "judge", "claims no source")

    def _core(self, text: str) -> list[str]:
        """The words of `text` that tell something: no grammar, and no frames that the report does not have."""
        words = content_words(text)
        return [word for word in words if not is_carrier(stem_of(word)) or self.report.supports(word)]

    def _is_ordinary(self, word: str) -> bool:
        return is_function_word(word) or self.report.supports(word)

    def _is_implied(self, text: Text, name: Name) -> bool:
        """Whether a text has some other form of the name, so that saying it adds nothing."""
        return any(all(self._has(text, part) for part in parts) for parts in name.known_by)

    def _has(self, text: Text, part: str) -> bool:
        name = Name(part, compact(part), 0)
        return matches(text, name, self._strict) >= (Match.WORDS if name.is_word else Match.CODE)

    def _level_of(self, words: Sequence[str]) -> int | None:
        """The lowest level of a source that has all of these words; the highest there is where none does."""
        fitting = [
            source.level
            for name, source in self.sources.items()
            if words and all(self._vocabularies[name].supports(word) or self.report.supports(word) for word in words)
        ]
        return min(fitting) if fitting else max((source.level for source in self.sources.values()), default=None)

    def only_refuses(self, question: str, answer: str) -> bool:
        """Whether an answer refuses and has nothing else in it than what it refuses to say."""
        rest, refuses = replies.without_refusal(Text(answer).folded, answer)
        asked = Vocabulary(question)
        own = [word for word in self._core(rest) if not asked.supports(word)]
        return refuses and replies.tells_nothing(own) and not replies.affirms(rest)

    def _refused(self, reason: str) -> Grade:
        return Grade(Effort.MEDIUM, self.unknown_level, "evidence", reason)

    @staticmethod
    def _highest(names: Iterable[Name]) -> int | None:
        return max((name.level for name in names), default=None)

    @staticmethod
    def _high(reason: str, level: int | None, unsupported: bool = False) -> Grade:
        return Grade(Effort.HIGH, level, "evidence", reason, unsupported)


def _asking(question: str) -> list[str]:
    """The sentences of a question that end with a question mark."""
    return [part for part in _SENTENCE_END.split(question) if part.rstrip(")\"' ").endswith("?")]
