"""Whether a question comes straight to its point: how short it is, and what stands beside the point.

One verdict of those in `rules.py`, in a room of its own because of its many words; that is the file to read next.
"""

from __future__ import annotations

import re

from ppp.questions.asking import AUXILIARY, REQUEST, SUBJECT, WH, WH_ENGLISH
from ppp.questions.options import STRONG_OPTION
from ppp.questions.sentences import BLOCK, PLACEHOLDER, SPACELESS_NAME, num_unspaced, prose, sentences, words_of

MAX_CONCISE_WORDS = 12
MAX_CONCISE_CODE = 1000
MAX_CONCISE_CHARS = 100  # so that code, which counts as one word, stays short too; addresses and paths need not

_GREETING = (
    r"(?:hello|hi|hey|dear|greetings|good\s+(?:morning|afternoon|evening|day)|thanks|thank\s+you|sorry|apologies|excuse\s+me"
    r"|(?:just\s+)?(?:a|one\s+more|one)?\s*quick\s+(?:one|question)|你好|您好"
    r"|pardon|ciao|salve|buon(?:giorno|asera)|(?:mi\s+)?scus[aio]\w*|grazie|hola|buen[oa]s\s+\w+"
    r"|perdon\w*|gracias|bonjour|bonsoir|salut"
    r"|merci|excuse[zr]?\b|désolée?|hallo|guten\s+\w+|danke|entschuldig\w+|ol[áa]|bom\s+dia|boa\s+\w+|obrigad[oa])"
)
_CLAUSE_END = r"[^,;:–]*[,;:–]\s*(?:i\s|\w+,\s)?"
# What stands before the point of a short question: a greeting, or a clause that gives background, reason or purpose.
_BESIDE_POINT = re.compile(
    rf"^\W*(?:{_GREETING}\b[^\n]*\w"
    rf"|(?:(?:since|as)\b[^,;:]*\s(?:(?:is|are|was|were|do|does|did|has|have|had|can|could|will|would)(?:n['’]t|not)?"
    rf"|\w+(?:ed|n['’]t)|fails?|says?|shows?)|because|given\s+that|considering|although|though|while\s+(?:i|we)"
    rf"|for\s+(?:context|background)|in\s+order\s+to|to\s+\w+(?:\s+\w+)?\s+(?:the|this|that|it|your|a)"
    rf"|siccome|poiché|dato\s+che|visto\s+che|como\s+(?:no|el|la|los|las|hay|tengo|veo|se|un\w*)"
    r"|ya\s+que|dado\s+que|puesto\s+que|comme\s+(?:je|il|ils|le|la|les|on|nous|un\w*)|puisque"
    r"|vu\s+que|étant\s+donné\s+que|da\s+(?:ich|wir|es|er|sie|man|der|die|das|beide|ein\w*|kein\w*|hier)|weil)"
    rf"\b{_CLAUSE_END}[¿¡]?\w"
    rf"|[^?]{{3,}}[,;:–-]\s*(?:so|but|therefore)\s+(?:{WH}|{AUXILIARY})"
    rf"|(?!{REQUEST})(?:i|we)(?:['’]\w+)?\s[^,;:–]{{3,}}?(?:[,;:–]|\s(?:and|but|so)\b)[^?]*?\b(?:{WH}|{AUXILIARY}))",
    re.I,
)
# How a condition or the question itself begins; alternatives are named first at times.
_NO_STATEMENT = (
    rf"(?!(?:{WH}|{AUXILIARY}|{REQUEST}|[^,;:–—?]*\bor\b|(?:and|or|then|now|also|please|kindly|\w+ly|if|unless|once|while"
    r"|in|on|at|for|from|to|of|with|within|without|by|until|under|after|before|during|about|regarding|concerning|between"
    r"|among|across|per|via|besides|apart|instead|as\s+of|as\s+for|compared|inside|outside|out\s+of|given|other)\b))"
)
# "There are two parsers; which one fails?": a statement of its own before the point. A tag ("..., isn't it?") is none.
_STATES_FIRST = re.compile(
    rf"^\W*{_NO_STATEMENT}(?:the|this|that|these|those|there|it|its|my|our|you|your|an?|Xqx|both|two|three|several|some"
    r"|all|nothing|no|\w+s)\s"
    r"[^?]*?\b(?:is|are|was|were|has|have|had|do|does|did|can|could|will|would|say|exist|fail|seem|look|differ|\w+s|\w+ed)"
    rf"(?:n['’]t)?\b[^?]*?(?:[,;:–—]|\s-)\s*(?:and\s+|so\s+|but\s+)?(?:{WH}|{AUXILIARY}\s+{SUBJECT}\s+(?!not\b)\w)",
    re.I,
)
# "Nothing works for me, where is it?" does as well; "On Windows, ...", "If it fails, ..." only say what is asked about.
_COMMENTS_FIRST = re.compile(
    rf"^\W*{_NO_STATEMENT}\w+\s[^,;?]*?\w,\s+(?:{WH_ENGLISH}|{AUXILIARY}\s+{SUBJECT}\s+(?!not\b)\w)", re.I
)
_EXPLAINS = re.compile(
    r"[,;(–-]\s*(?:thanks|thank\s+you|thx|grazie|gracias|merci|danke|obrigad[oa])\b"
    r"|\((?:(?:i|we)\s\w|(?:it|there|they)\s(?:is|are|was|were|has|have|does|did)\b)"
    r"|\w\s+(?:and|so|but)\s+i\s+(?:wonder|was\s+wondering|would\s+like|want|need)\b"
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
    openings = (_BESIDE_POINT, _STATES_FIRST, _COMMENTS_FIRST)
    return not (any(opening.match(text) for opening in openings) or _EXPLAINS.search(text))
