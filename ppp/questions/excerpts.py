"""Excerpts in a question: the lines of a quoted block, and the file or address that they are said to come from.

No verdicts; `rules.py` gives those. What counts as a block stands in `sentences.py`.
"""

from __future__ import annotations

import re

from ppp.questions.sentences import BLOCK

_FILE_TYPE = (
    r"(?:pyi?|pyx|ipynb|[jt]sx?|mjs|cjs|vue|svelte|java|kts?|scala|groovy|c|h|cc|[ch]pp|cxx|hxx|cs|vb|fs|go|rs|rb|erb|php"
    r"|p[lm]|lua|r|rmd|jl|mm?|swift|dart|exs?|erl|hs|clj|ml|nim|zig|sol|f90|asm|v|vhdl?|sql|prisma|graphql|sh|bash|zsh|ps1"
    r"|bat|cmd|x?html?|hbs|ejs|j2|jinja2?|tmpl|s?css|less|sass|xml|svg|jsonl?|json5|ya?ml|toml|ini|cfg|cnf|conf|config"
    r"|properties|plist|service|env|lock|mod|txt|mdx?|rst|adoc|tex|bib|log|[ct]sv|pdf|docx?|xlsx?|pptx?|odt|epub|diff"
    r"|patch|proto|cmake|gradle|gemspec|nix|tf|rc|in|po|srt)"
)
# What ends like a file name and is none: products, and the attributes of objects that code is full of.
_PRODUCT = (
    r"(?:node|vue|next|nuxt|nest|react|three|d3|express|ember|backbone|angular|chart|moment|meteor|knockout|alpine|p5"
    r"|ext|discord|socket\.io|tensorflow|handlebars|mustache|require|underscore|brain|bun|deno)\.js"
)
_OBJECT = (
    r"(?:self|this|cls|super|process|console|math|np|numpy|torch|tf|pd|df|os|sys|mock|response|request|req|resp?|obj"
    r"|logger|session|threading|window|document|module|event|data|args|ctx|app|client|import\.meta)"
)
_ATTRIBUTE = (
    rf"{_OBJECT}\.(?:log|env|in|json|html|config|conf|lock|patch|mod|h|c|v|r|m|txt|text|exs?|service|sql|go|xml)"
)
_ROOT = r"(?:etc|usr|var|home|opt|tmp|srv|root|proc|dev|mnt|src|lib|bin|workspace|testbed|Users|Library)"
_REFERENCE = re.compile(
    rf"https?://[^\s/]+|\bwww\.\w|\b(?:[\w-]{{1,63}}\.){{1,4}}(?:org|com|net|edu|gov|io|dev|info|eu|[a-z]{{2}})/\w"
    rf"|(?<![\w.])(?!(?:{_PRODUCT}|{_ATTRIBUTE})\b)[\w./\\~+-]{{0,200}}[\w-]\.{_FILE_TYPE}\b(?!\.\w|\()"
    r"|\b(?:Makefile|Dockerfile|README|LICENSE|CHANGELOG|Gemfile|Rakefile|Procfile|Jenkinsfile|Vagrantfile|Pipfile)\b"
    r"|(?<![\w.])\.(?:gitignore|gitattributes|env|bashrc|zshrc|profile|dockerignore|editorconfig|npmrc|flake8|coveragerc)\b"
    rf"|(?:^|[\s(`'\"])(?:/{_ROOT}|\.{{1,2}}|~)/[\w.-]+",
    re.I,
)
# Inside a block a file is named by its head: the fence's own line, a comment in the first line, or a diff's header.
_HEAD = re.compile(
    r"\A\s*(?:`{3,}|~{3,})(.*(?:\n[ \t]*(?:#|//|--|/\*|<!--|;|%).*)?)|\A[ \t>]*(?:#|//|--|/\*|<!--|;|%)(.*)"
    r"|^[ \t>]*(?:\+\+\+|---|diff|Index:)\s(.*)|^[ \t>]*File\s(\".*)",
    re.M,
)


def num_block_lines(text: str) -> int:
    """Lines of the longest quoted block; empty lines, fences and dots that stand for left-out lines are none."""
    return max((_num_lines(block.group()) for block in BLOCK.finditer(text)), default=0)


def _num_lines(block: str) -> int:
    lines = [line.strip(" \t>") for line in block.splitlines()]
    fenced = block.lstrip().startswith(("```", "~~~"))
    if fenced:
        lines = [line for line in lines[1:] if not re.fullmatch(r"`{3,}|~{3,}", line)]
    return sum(not re.fullmatch(r"(?:\d+\s*[:|])?\s*(?:(?:#|//)?\s*(?:\.{3}|…))?", line) for line in lines)


def names_source(text: str) -> bool:
    """Whether a file or an address is named around the blocks or in the head of one, not merely used in its code."""
    if _REFERENCE.search(BLOCK.sub("\n", text)):
        return True
    heads = (head for block in BLOCK.finditer(text) for head in _HEAD.finditer(block.group()))
    return any(_REFERENCE.search(head.group(head.lastindex or 0)) for head in heads)
