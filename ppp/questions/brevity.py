"""Whether a question comes straight to its point: how short it is, and what stands beside the point.

One verdict of those in `rules.py`, in a room of its own because of its many words; that is the file to read next.
"""

from __future__ import annotations

import re

from ppp.questions.asking import AUXILIARY, REQUEST, SUBJECT, WH
from ppp.questions.options import STRONG_OPTION
from ppp.questions.sentences import BLOCK, PLACEHOLDER, SPACELESS_NAME, num_unspaced, prose, sentences, words_of

MAX_CONCISE_WORDS = 12
MAX_CONCISE_CODE = 1000
MAX_CONCISE_CHARS = 100  # so that code, which counts as one word, stays short too; addresses and paths need not

_GREETING = (
    r"(?:hello|hi|hey|dear|greetings|good\s+(?:morning|afternoon|evening|day)|thanks|thank\s+you|sorry|apologies|excuse\s+me"
    r"|pardon|ciao|salve|buon(?:giorno|asera)|scusa\w*|grazie|hola|buen[oa]s\s+\w+|perdon\w*|gracias|bonjour|bonsoir|salut"
    r"|merci|hallo|guten\s+\w+|danke|entschuldig\w+|ol[áa]|bom\s+dia|boa\s+\w+|obrigad[oa])"
)
_CLAUSE_END = r"[^,;:–]*[,;:–]\s*(?:i\s|\w+,\s)?"
# What stands before the point of a short question: a greeting, or a clause that gives background, reason or purpose.
_BESIDE_POINT = re.compile(
    rf"^\W*(?:{_GREETING}\b[^\n]*\w"
    rf"|(?:(?:since|as)\b[^,;:]*\s(?:(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would)(?:n['’]t|not)?"
    rf"|\w+(?:ed|n['’]t)|fails?|says?|shows?)|because|given\s+that|considering|although|though|while\s+(?:i|we)"
    rf"|for\s+(?:context|background)|in\s+order\s+to|to\s+\w+(?:\s+\w+)?\s+(?:the|this|that|it|your|a)"
    rf"|siccome|poiché|dato\s+che|visto\s+che|como\s+(?:no|el|la|los|las|hay|tengo|veo|se|un\w*)|ya\s+que|dado\s+que|puesto\s+que|comme\s+(?:je|il|ils|le|la|les|on|nous|un\w*)|puisque|vu\s+que|étant\s+donné\s+que|da\s+(?:ich|wir|es|er|sie|man|der|die|das|beide|ein\w*|kein\w*|hier)|weil)"
    rf"\b{_CLAUSE_END}[¿¡]?\w"
    rf"|[^?]{{3,}}[,;:–-]\s*(?:so|but|therefore)\s+(?:{WH}|{AUXILIARY})"
    rf"|(?!{REQUEST})(?:i|we)(?:['’]\w+)?\s[^,;:–]{{3,}}?(?:[,;:–]|\s(?:and|but|so)\b)[^?]*?\b(?:{WH}|{AUXILIARY}))",
    re.I,
)
# "There are two parsers; which one fails?": a statement of its own before the point. A tag ("..., isn't it?") is none.
_STATES_FIRST = re.compile(
    r"^\W*(?:the|this|that|these|those|there|it|its|my|our|your|an?|both|two|three|several|some|all|nothing|no|\w+s)\s"
    r"[^?]*?\b(?:is|are|was|were|has|have|had|do|does|did|can|could|will|would|say|exist|fail|seem|look|differ|\w+s|\w+ed)"
    rf"(?:n['’]t)?\b[^?]*?(?:[,;:–—]|\s-)\s*(?:and\s+|so\s+|but\s+)?(?:{WH}|{AUXILIARY}\s+{SUBJECT}\s+\w+\s+\w)",
    re.I,
)
_EXPLAINS = re.compile(
    r"[,;(–-]\s*(?:thanks|thank\s+you|thx|grazie|gracias|merci|danke|obrigad[oa])\b"
    r"|\((?:(?:i|we)\s\w|(?:it|there|they)\s(?:is|are|was|were|has|have|does|did)\b)"
    r"|[,;(–-]\s*(?:because|since|as\s+(?:i|we|you|the|it|this)|perché\s+(?:non|il|la)|porque|weil|denn|car|parce\s+qu)\b"
    r"|\bso\s+(?:that\s+)?(?:i|we)\s+can\b|\bin\s+order\s+to\s+\w+\s+(?:it|this|the\s+(?:bug|issue|problem))\b",
    re.I,
)


def is_concise(question: str) -> bool:
    """One sentence that opens with its point: at most 12 words and 100 characters (labels of options are no words)."""
    if any("\n" in block.group().strip() for block in BLOCK.finditer(question)):
        return False
    if len(question) > MAX_CONCISE_CODE or len(SPACELESS_NAME.sub(PLACEHOLDER, question).strip()) > MAX_CONCISE_CHARS:
        return False
    text = prose(question)
    spoken = STRONG_OPTION.sub(" ", prose(question, with_quotations=True))
    words = [word for word in re.split(r"[\s–—]+", spoken) if words_of(word)]
    if not 0 < len(words) + num_unspaced(text) // 2 <= MAX_CONCISE_WORDS or len(sentences(text)) != 1:
        return False
    return not (_BESIDE_POINT.match(text) or _STATES_FIRST.match(text) or _EXPLAINS.search(text))
