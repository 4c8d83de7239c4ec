"""The rules that judge one question: a matrix of plain cases, then what tries to fool each rule."""

from __future__ import annotations

import pytest

from ppp.preferences import PREFERENCES
from ppp.questions import rules
from ppp.questions.sentences import prose, sentences

ENGLISH = "Which module is affected?"
FIVE = (
    "Which module is affected? Quale modulo è interessato? ¿Qué módulo está afectado? Quel module est concerné ?"
    " Welches Modul ist betroffen?"
)
BLOCK = "```python\nfor line in text:\n    read(line)\n    keep(line)\n```"

# question -> the preferences among the ten that it follows
MATRIX = {
    ENGLISH: {"commas", "one_question", "concise_question"},
    "WHICH MODULE IS AFFECTED?": {"capital", "commas", "one_question", "concise_question"},
    "which module is affected ?": {"commas", "one_question", "concise_question"},
    "Quale modulo è interessato?": {"lang_ita", "commas", "one_question", "concise_question"},
    "QUAL È IL MODULO?": {"lang_ita", "commas", "one_question", "concise_question"},
    '{"question": "Which module is affected?"}': {"json", "commas", "one_question", "concise_question"},
    '{"QUESTION": "WHICH MODULE?"}': {"json", "capital", "commas", "one_question", "concise_question"},
    '{"domanda": "Quale modulo è interessato?"}': {"json", "lang_ita", "commas", "one_question", "concise_question"},
    FIVE: {"lang_multi", "commas"},
    "Which module is it: A) parser B) cache C) other?": {"do_selection", "commas", "one_question", "concise_question"},
    "Which module is it? A) parser B) cache C) other": {"do_selection", "commas", "one_question", "concise_question"},
    "I read your report. I need one detail. Which module is affected?": {"length", "commas", "one_question"},
    f"I looked at src/parser.py:\n{BLOCK}\nWhich module is affected?": {"snippet", "commas", "one_question"},
    "Hello there, thanks. Could you tell me which module and which operation is affected?": set(),
    "Thanks.": {"commas", "concise_question"},
    "": {"commas"},
}

NUM_QUESTIONS = {
    "What is X and what is Y?": 2,
    "What is X? What is Y?": 2,
    "What is X?And what is Y?": 2,
    "When and where does it fail?": 2,
    "Which file and which line?": 2,
    "Which file and line?": 1,
    "Which module and version do you use?": 1,
    "Is it A or B?": 1,
    "Is it the parser? Or the cache?": 1,
    "Are the parser and the cache affected?": 1,
    "Is it slow, and does it crash?": 2,
    "Which module is affected, which version is used?": 2,
    "When it fails, what is shown?": 1,
    "In the report, which module is meant?": 1,
    "Does it fail on save and when loading?": 1,
    "It fails, right?": 1,
    "Which module is affected?!": 1,
    "Which module is affected": 1,
    "I tried it. Please tell me the version.": 1,
    "There is too little here, so tell me which module is affected.": 1,
    "Tell me the version and the platform.": 1,
    "Tell me the version and give me the log.": 2,
    "I would like to know which module is affected.": 1,
    "Please tell me: which module is affected?": 1,
    "Which module? Please choose.": 1,
    "Please choose: A) parser B) cache.": 1,
    "Which one is it: A) parser? B) cache?": 1,
    "1. What is X?\n2. What is Y?": 2,
    'Did you mean "what is X?" or "what is Y?"': 1,
    "Should I use `a ? b : c`?": 1,
    "See https://example.org/?a=b&c. Which module?": 1,
    "Name resolution fails. What I see is a crash. Which module?": 1,
    "Qual è il modulo e qual è l'operazione?": 2,
    "Quale file e riga?": 1,
    "¿Qué módulo es y cuál es la versión?": 2,
    "Welches Modul ist es und welche Version ist es?": 2,
    "どのモジュールですか？": 1,
    "أي وحدة متأثرة؟": 1,
    '{"first": "What is X?", "second": "What is Y?"}': 2,
    "I tried it.": 0,
    "?": 0,
    FIVE: 5,
}

NUM_SENTENCES = {
    "I use 3.11. It fails in main.py, e.g. at a.b.c. Which module?": 3,
    "Dr. Smith wrote it. He left... Which one?": 3,
    "One two... and three. Really?! Yes!!!": 3,
    "See `x. y. z` now. Go to https://a.example/c.d. Why?": 3,
    "It costs 3.50 now. It was 2.10. Why?": 3,
    "This is v1.2.3. It is in C:\\a.b\\c.txt. Why?": 3,
    "It fails.\n\nI looked.\n\nWhy?": 3,
    "It fails and this line is wrapped at about seventy characters or\nso. I looked. Why?": 3,
    "1. It fails. 2. I looked. 3. Why?": 3,
    "I SAW IT, E.G. IN MAIN.PY. I NEED HELP. WHICH ONE?": 3,
    "I read it, i.e. the log, etc. and so on. Why?": 2,
    "La ver. 2 fallisce. Il sig. Rossi ha letto. Perché?": 3,
    "It fails. I looked. Which: A. parser B. cache?": 3,
    "It fails. I looked. Which one?\nA) parser\nB) cache": 3,
    "Smith et al. wrote it. It fails on no. 5. Why?": 3,
    'He said "It fails. Badly." I looked. Why?': 3,
    "It fails (see main.py). I looked. Why? 😀": 3,
    "Look at this:\n```\nx = 1.\ny = 2. Z\n```\nI looked. Why?": 3,
    "これは壊れています。見ました。なぜですか？": 3,
    "It fails . i looked . which one ?": 3,
    "One. Two. Three. Four.": 4,
    "One: two; three, four": 1,
    "...": 0,
}

SELECTIONS = {
    "Which?\n(a) parser\n(b) cache": True,
    "Which?\n- A: parser\n- B: cache": True,
    "Which?\n1. parser\n2. cache": True,
    "1) parser 2) cache. Which?": True,
    "Which: A. parser B. cache?": True,
    "Which one: [A] parser [B] cache": True,
    "Which? Option A: parser, option B: cache": True,
    "Which one is it? A - parser, B - cache": True,
    "Which module is it : A ) parser B ) cache C ) other ?": True,
    "Which? a) `x.py` b) `y.py`": True,
    "Which? **A)** parser **B)** cache": True,
    "Quale? A) uno B) due": True,
    "Please choose: A) parser B) cache.": True,
    '{"question": "Which?", "options": {"A": "parser", "B": "cache"}}': True,
    '{"question": "Which?", "options": ["A) parser", "B) cache"]}': True,
    "Is it A or B?": False,
    "Is it the parser or the cache?": False,
    "Which?\n- parser\n- cache": False,
    "Which? A) B)": False,
    "Which? A) parser B) ?": False,
    "Which? A) parser": False,
    "Which? B) parser C) cache": False,
    "Which? A) parser C) cache": False,
    "Which? A) parser A) cache": False,
    "1. What is X?\n2. What is Y?": False,
    "Plan A. Then plan B. fails?": False,
    "I tried (a) restarting and (b) reinstalling. Which module fails?": False,
    "Call f(a) and g(b)?": False,
    "Is version 1. 2. right?": False,
}

LANGUAGE_MIXES = {
    FIVE: True,
    FIVE.replace("? ", "?\n"): True,
    "Which module is affected / Quale modulo è interessato / Qué módulo está afectado / Quel module est concerné"
    " / Welches Modul ist betroffen": True,
    "EN: Which module is affected?\nIT: Quale modulo è interessato?\nES: Qué módulo está afectado?"
    "\nFR: Quel module est concerné ?\nDE: Welches Modul ist betroffen?": True,
    "Which module? Quale modulo? ¿Qué módulo? Quel module ? Welches Modul?": True,
    "Which version do you use? Quale versione usi? ¿Qué versión usas? Qual versão você usa?"
    " Quelle version utilisez-vous ?": True,
    "What is the object? Qual è l'oggetto? ¿Cuál es el objeto? Quel est l'objet ? Was ist das Objekt?": True,
    "Which module is affected? どのモジュールですか？ 哪个模块受到影响？"
    " Какой модуль затронут? 어떤 모듈이 영향을 받나요?": True,
    '{"en": "Which module is affected?", "it": "Quale modulo è interessato?", "es": "¿Qué módulo está afectado?",'
    ' "fr": "Quel module est concerné ?", "de": "Welches Modul ist betroffen?"}': True,
    FIVE.rsplit(" W", 1)[0]: False,
    "Hello! Hola! Bonjour! Hallo! Ciao! Which module is affected?": False,
    "Hello, hola, bonjour, hallo, ciao: which module is affected?": False,
    "Guten Tag! Buenos días amigo! Bonjour mon ami! Ciao amico! Which module is affected?": False,
    "Which module is affected? Which version is it? Where is the error? How does it fail? Which file?": False,
    "Quale modulo è interessato? Quale versione usi? Dove si trova il file? Come fallisce? Dimmi tutto.": False,
    " ".join(["Which module is affected?"] * 5): False,
}

ITALIAN = """
Quale browser stai usando?
Mi sapresti dire in che cartella si trova il file di configurazione?
Il comando `npm run build` termina con un errore?
L'eccezione KeyError viene sollevata da get_option() o da set_option()?
Avete modificato il Dockerfile di recente?
Preferisci una soluzione rapida o una completa?
In quale riga di src/app/views.py compare il messaggio?
Il valore restituito è None o una lista vuota?
Cosa ti aspettavi di vedere?
Quale oggetto non viene salvato?
Posso modificare anche i test?
Hai un esempio minimo?
Di quale squadra faceva parte il giocatore?
In quale città si è svolta la conferenza?
Il film è uscito prima o dopo il 1990?
DI QUALE LIBRO SI TRATTA?
{"domanda": "Quale tabella del database contiene i duplicati?"}
Ho aperto il file. Non trovo la causa. Quale operazione fallisce?
Quale opzione: A) il parser B) la cache C) il logger?
Serve la versione 3.11.2 o basta la 3.9?
Può indicarmi l'URL della pagina?
Vedi l'errore "No such file or directory"?
Quale commit ha introdotto la regressione?
Quale errore?
Che versione di Python usi?
Ciao! Quale modulo è interessato? Grazie.
Hai aggiornato il package django.contrib.admin alla release 4.2.1?
La pipeline di CI usa Docker?
Quale operazione è interessata?
Versione?
""".strip().splitlines()

NOT_ITALIAN = """
Which browser are you using?
Could you tell me in which folder the configuration file lives?
What did you expect to see?
Do you use Django or Flask?
Error message?
Module?
¿Qué navegador estás usando?
Prefieres una solucion rapida o una completa?
¿El test falla solo con --strict?
En que ciudad fue la conferencia?
¿Usas Django o Flask?
Que modulo esta afectado?
Cual es el modulo?
Qual navegador você está usando?
Em que pasta fica o arquivo de configuração?
Prefere uma solução rápida ou completa?
Qual objeto está envolvido?
Usa Django ou Flask?
Qual e o modulo?
Quel navigateur utilisez-vous ?
Quelle version ?
Préférez-vous une solution rapide ou complète ?
Welchen Browser benutzt du?
In welcher Stadt fand die Konferenz statt?
În ce oraș a avut loc conferința?
Quin mòdul està afectat?
Welke versie gebruik je?
Какой модуль затронут?
哪个模块受到影响？
Quale module is affected by the error in the report that you sent me?
Ciao! Could you tell me the version?
Ho letto il report. Which module is affected?
La domanda: "Which module is affected and how does it fail?"
`quale_modulo()`
""".strip().splitlines()

CAPITALS = {
    "WHICH MODULE IS AFFECTED?": True,
    "VERSION?": True,
    "WHAT DOES MAIN.PY PRINT ON LINE 12?": True,
    "IS IT: A) PARSER B) CACHE?": True,
    "WHICH MODULE IS IN main.py?": False,
    "WHICH MODULE IS AFFECTEd?": False,
    "CHE ERRORE VEDI?": False,
    "QUE ERROR VES EN LA PANTALLA?": False,
    "WELCHE DATEI IST BETROFFEN?": False,
    "WAS KURT GÖDEL BORN IN BRNO?": True,
    "WHICH МОДУЛЬ IS AFFECTED?": False,
    "КАКОЙ МОДУЛЬ?": False,
    "WHICH MODULE ⓘ?": False,
    "123?": False,
}

JSONS = {
    '{"question": "Which module?"}': True,
    ' \n["Which module?", 1, null]\n': True,
    '{"a": {"b": ["Which?"]}}': True,
    '"Which module?"': False,
    "Which module?": False,
    'Here: {"question": "Which module?"}': False,
    '```json\n{"question": "Which module?"}\n```': False,
    '{"question": "Which module?"} Thanks': False,
    "{'question': 'Which module?'}": False,
    '{"question": "Which module?",}': False,
    '{"question": NaN}': False,
    '{"question": "Which?", "question": "What?"}': False,
    "{}": False,
    "[1]": False,
    "[" * 100_000 + "]": False,
    "[" * 60 + '"Which?"' + "]" * 60: False,
    "[" + "1" * 5000 + "]": False,
}

SNIPPETS = {
    f"In src/parser.py:\n{BLOCK}\nWhy?": True,
    f"See https://example.org/spec\n{BLOCK}\nWhy?": True,
    "See notes.md:\n> first line\n> second line\n> third line\nWhy?": True,
    "See app.cfg:\n\n    a = 1\n    b = 2\n    c = 3\n\nWhy?": True,
    "src/parser.py says\n12: def f():\n13:     x = 1\n14:     return x\nWhy?": True,
    f"I see\n{BLOCK}\nWhy?": False,
    "In src/parser.py:\n```python\na = 1\nb = 2\n```\nWhy?": False,
    "In src/parser.py: `x = 1`. Why?": False,
    "In src/parser.py:\n```\n\n\n\n```\nWhy?": False,
    f"I see\n{BLOCK}\nIs math.log(x) wrong and/or slow?": False,
}

CONCISE = {
    "Which module?": True,
    "Is it main.py?": True,
    "どのモジュールですか？": True,
    "one two three four five six seven eight nine ten eleven twelve?": True,
    "one two three four five six seven eight nine ten eleven twelve thirteen?": False,
    "Hi. Which module?": False,
    "`" + "x" * 300 + "`?": False,
    "...": False,
}


@pytest.mark.parametrize("question", MATRIX)
def test_every_rule_judges_every_plain_question(question: str) -> None:
    followed = {name for name, preference in PREFERENCES.items() if preference.rule(question)}
    assert followed == MATRIX[question]


@pytest.mark.parametrize(("question", "expected"), NUM_QUESTIONS.items())
def test_questions_are_counted(question: str, expected: int) -> None:
    assert rules.num_questions(question) == expected
    assert rules.is_one_question(question) is (expected == 1)


@pytest.mark.parametrize(("question", "expected"), NUM_SENTENCES.items())
def test_sentences_are_counted(question: str, expected: int) -> None:
    assert len(sentences(prose(question))) == expected
    assert rules.is_three_sentences(question) is (expected == 3)


@pytest.mark.parametrize(
    ("rule", "question", "expected"),
    [
        (rule, question, expected)
        for rule, table in (
            (rules.offers_selection, SELECTIONS),
            (rules.is_multilingual, LANGUAGE_MIXES),
            (rules.is_capital, CAPITALS),
            (rules.is_json, JSONS),
            (rules.has_snippet, SNIPPETS),
            (rules.is_concise, CONCISE),
            (rules.is_italian, dict.fromkeys(ITALIAN, True) | dict.fromkeys(NOT_ITALIAN, False)),
        )
        for question, expected in table.items()
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, str) else None,
)
def test_rule_is_not_fooled(rule: rules.Rule, question: str, expected: bool) -> None:
    assert rule(question) is expected


@pytest.mark.parametrize("sign", ",،、，﹐﹑߸⸲⸴⹁꘍꓾՝፣᠂︐､")
def test_comma_of_any_script_breaks_commas(sign: str) -> None:
    assert not rules.has_no_comma(f"Is it 1{sign}5?")


@pytest.mark.parametrize("sign", ";·.'‘’‚“„ʻșȚ̦")
def test_what_only_looks_or_is_named_like_a_comma_does_not_break_commas(sign: str) -> None:
    assert rules.has_no_comma(f"Is it 1{sign}5?")


@pytest.mark.parametrize(
    "text",
    [
        *("(" * 6000, "a(a" * 3000, "www." * 3000, "`" * 6001, "-" * 30_000, " " * 30_000 + "x", "> x\n" * 5000),
        *("please, " * 3000, "i) ii) iii) " * 800, "(i) (ii) " * 800, '{"a":' * 50_000, "\ud800 x?", "(v. 1 * ^ [ \\"),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_hostile_text_gets_a_verdict_from_every_rule(text: str) -> None:
    for name, preference in PREFERENCES.items():
        assert preference.rule(text) in (True, False, None), name
