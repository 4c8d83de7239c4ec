"""Which language a sentence is in: py3langid's guess, corrected where words that only hold sentences together differ.

No verdicts and nothing of our own imported; `sentences.py` prepares the text and is the file to read next. py3langid
reads letters, so that names ("Giovanni Rossi") and near relatives (Spanish, Portuguese, Italian) mislead it on short
questions; articles, prepositions and forms of "to be" are in no name.
"""

from __future__ import annotations

import functools
import re
from collections import Counter

from py3langid.langid import MODEL_FILE, LanguageIdentifier

# The languages an agent is likely to write. Regional relatives (Galician, Latin, Afrikaans, Wu Chinese, ...) stay out:
# with all of py3langid's languages they take short Spanish, Italian, Dutch and Chinese questions.
LANGUAGES = (
    *("en", "it", "es", "fr", "de", "pt", "nl", "ro", "ca", "pl", "sv", "da", "no", "tr", "fi", "cs", "hu", "id", "vi"),
    *("ru", "uk", "bg", "el", "he", "ar", "fa", "ur", "hi", "bn", "ta", "te", "th", "ja", "zh", "ko"),
)

# A short question is named by its question word, where that belongs to one language only.
_QUESTION_WORDS = {
    "en": {"what", "which", "whose", "why", "how", "when", "where"},
    "it": {"quale", "quali", "perché", "chi", "dove", "cosa"},
    "es": {"qué", "cuál", "cuáles", "cómo", "dónde", "cuándo", "quién"},
    "fr": {"quel", "quelle", "quels", "quelles", "quoi", "comment", "pourquoi", "où", "combien"},
    "de": {"welche", "welches", "welcher", "welchen", "welchem", "wann", "warum", "wieso"},
    "pt": {"quais", "quem"},
    "nl": {"welke", "waarom", "wanneer", "waar"},
    "la": {"quis", "quid", "quae", "quo", "cur", "ubi", "quomodo"},
}

_FUNCTION_WORDS = {
    "en": """the is are was were does did do has have had what which where when who whose why how that this these those
        there of from with without in and or not you your yours i my we our they it its he she his her him them at on
        for to a an be been by if so as than then can could should would will may must shall about into after before
        any some all only also me us please born wrote written know mean means need needs want wants expect expected see
        saw happen happens happened found made took come comes tell give first last year people person city""",
    "it": """il lo la i gli le un uno una di del dello della dell dei degli delle da dal dalla dall dai in nel nello
        nella nell nei nelle con su sul sulla sull sui per tra fra e ed o a che chi cui quale quali qual come dove
        quando quanto quanti quanta quante perché perche cosa cos c è l d un sono era erano sia ho hai ha abbiamo avete
        hanno aveva non si ci vi mi ti lui lei noi voi loro questo questa questi queste quello quella anche oppure ma se
        più già ancora stai sta devo vuoi puoi può al allo alla all ai agli alle stato stata solo quest mio tuo suo
        poi allora quindi invece dunque adesso ora però""",
    "es": """el la los las un una unos unas de del al en con por para sin sobre entre y e o u a que qué quien quién cual
        cuál cuáles cómo como dónde donde cuándo cuando cuánto es son era está están ser ha has han hay he no se te me
        le les lo su sus tu tus mi este esta estos estas ese esa eso esto también pero si más ya muy fue""",
    "pt": """o a os as um uma uns umas de do da dos das em no na nos nas ao à com por para sem sobre entre e ou que quem
        qual quais como onde quando quanto é são era está estão foi não se te me lhe seu sua seus suas meu você vocês
        este esta isso isto também mas mais já há pelo pela""",
    "fr": """le la les l un une des du de d au aux en dans avec par pour sans sur entre et ou que qu qui quel quelle
        quels quelles quoi comment où quand pourquoi combien est sont était a à ont ai as avez avons être ne n pas se s
        ce c cet cette ces il elle ils elles on nous vous je j tu son sa ses votre vos mon ma mes aussi mais plus si y
        t""",
    "de": """der die das den dem des ein eine einen einem einer ist sind war waren hat haben hast wird werden nicht und
        oder aber auch von vom zu zum zur mit ohne aus bei beim nach für auf an am in im über unter was wer wen wem wie
        wo wann warum welche welcher welches welchen du ihr sie er es wir ich mir mich dir dich dein deine mein sein
        ihre dass ob wenn noch schon nur kann soll""",
    "nl": """de het een is zijn was waren heeft hebben en of maar ook van voor met zonder bij naar op aan in over te wat
        wie waar wanneer waarom welke welk hoe je jij u hij zij we wij ik mij mijn jouw uw niet dat die dit deze als er
        nog al kan moet""",
    "ca": """el la els les l d un una uns unes de del dels al als a en amb per sense sobre i o que què qui quin quina
        quins quines com on quan és són era està no es em et li seu seva aquest aquesta també però si més fas""",
    "la": """est sunt erat esse et in ad ab ex de cum sine per sub inter sed aut vel non nec ut si qui quae quod quis
        quid quem quam quo quibus cuius ubi unde quando cur quomodo hic haec hoc ille illa illud eius eorum anno""",
    "ro": """un o al a ai ale cel cea de la din în pe cu fără pentru și sau dar ce care cine unde când cum cât este sunt
        era are au nu se îți tu voi eu mai ca să acest această""",
}
_KNOWN = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}
MIN_LEAD = 2  # words by which another language must be ahead to overrule py3langid


@functools.cache
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier


def rank_languages(text: str) -> tuple[tuple[str, float], ...]:
    """The languages of one sentence with their probabilities, most likely first; empty where it has no words."""
    if not re.search(r"[^\W\d_]", text):
        return ()
    # Signs that only Spanish and its nearest relatives write decide where py3langid hears Italian.
    if re.search(r"[¿¡ñ]", text):
        return (("es", 1.0),)
    words = re.findall(r"\w+", text.casefold())
    owners = [language for language, known in _QUESTION_WORDS.items() if not known.isdisjoint(words)]
    if len(words) <= 3 and len(owners) == 1:
        return ((owners[0], 1.0),)
    ranked = [(language, float(share)) for language, share in _identifier().rank(" ".join(text.split()))]
    hits = Counter({language: len(known.intersection(words)) for language, known in _KNOWN.items()})
    (best, most), (_, second) = hits.most_common(2)
    if most > second and most >= hits[ranked[0][0]] + MIN_LEAD:
        return ((best, 1.0), *((language, 0.0) for language, _ in ranked if language != best))
    return tuple(ranked)
