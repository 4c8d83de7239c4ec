"""A tokenizer for the town: words and the fixed parts of phrases, each one token; exact to decode, nothing to learn.

The vocabulary is collected from the tables of the town, so that a new module or phrase needs no change here. Text
outside of it becomes `<unk>`. Real models bring their own tokenizer.
"""

from __future__ import annotations

import re
from importlib.resources import files

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ppp.baselines import town_phrases as phrases
from ppp.environments import town
from ppp.preferences import PREFERENCES
from ppp.users.scripted import ALREADY_SAID, DONT_KNOW

PAD, UNK, END = "<pad>", "<unk>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CALLS = ("<function=ask_user>", "<function=list_files>", "<function=open_file>", "<function=finish>")
PIECE = re.compile(r" ?\w+| ?[^\w\s]|\s")
CLAUSE = re.compile(r"[^:;.]+|[:;.]+")


def vocabulary() -> list[str]:
    """Every piece of text that a session in the town can contain, longest first."""
    texts = [town.render_issue("cache", "loading", "key", symptom) for symptom in town.SYMPTOMS]
    texts += [
        town.render_issue("", "", "", "fails", town.DETAILS),
        "In",
        DONT_KNOW,
        ALREADY_SAID,
        phrases.HEED,
        phrases.IGNORE,
    ]
    texts += [f" {wish}." for wish in phrases.WISHES.values()] + [" The module is the operation is and the object is."]
    texts += ["Functions: ; Files: ;", "No such file", "No such module"]
    pieces = {piece for text in texts for piece in PIECE.findall(text)}
    pieces |= {
        phrases.HEED,
        phrases.IGNORE,
        f" {phrases.MISSING}",
        f" {phrases.NOTHING}",
        DONT_KNOW,
        ALREADY_SAID,
        "Functions:",
        "Files:",
        "The",
        " </function>",
        "\n",
        " ",
    }
    for preference in PREFERENCES.values():
        pieces |= {clause.rstrip(" ") for clause in CLAUSE.findall(preference.description)}
    for form in phrases.FORMS.values():
        pieces |= {
            part.rstrip(" ")
            for part in re.split(r"\{\w+\}", form.replace("{{", "\0").replace("}}", "\1"))
            if part.strip()
        }
    pieces = {piece.replace("\0", "{").replace("\1", "}") for piece in pieces}
    for subject, italian in phrases.ITALIAN.items():
        pieces |= {f" {subject}", f" {subject.upper()}", f" {italian}"}
    pieces |= {" which", "Which", "WHICH", " and which", " AND WHICH", "Quale", " e quale", " old", " new"}
    for value in (*town.MODULES, *town.OPERATIONS, *town.OBJECTS):
        pieces |= {f" {value}"}
    pieces |= {f"/{operation}.py" for operation in town.OPERATIONS}
    pieces |= {f" f{number}" for number in range(town.NUM_FUNCTION_NAMES)}
    pieces.discard("")
    return sorted(pieces, key=lambda piece: (-len(piece), piece))


def town_tokenizer() -> PreTrainedTokenizerFast:
    """The town's tokenizer, with its chat template; `decode(encode(text)) == text` for all text of the town."""
    special = [PAD, UNK, END, *ROLES]
    pieces = [piece for piece in (*CALLS, *vocabulary()) if piece not in special]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys([*special, *pieces]))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    # A piece never begins or ends inside a word: " The" is no part of " There". An unknown word is one <unk>.
    bounded = [
        ("(?<!\\w)" if piece[0].isalnum() else "") + re.escape(piece) + ("(?!\\w)" if piece[-1].isalnum() else "")
        for piece in sorted(pieces, key=len, reverse=True)
    ]
    pattern = "|".join(bounded) + r"|\w+|[\s\S]"
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = files("ppp.chat_templates").joinpath("town.jinja").read_text(encoding="utf-8")
    return wrapped
