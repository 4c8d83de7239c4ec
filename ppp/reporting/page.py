"""One HTML file with everything that a report holds: scores, figures, tables, and each session as a conversation.

The file needs no network and no other file. What models and users said stands in it as compressed data (`blocks.py`)
and reaches the page as text only; the policy in its head lets nothing run but the script that is hashed there. Where
it is served while a run goes on: `watch.py`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ppp.reporting.blocks import blocks, build_index, pack, token_block, visible
from ppp.reporting.content import Figure, Headline, Report

ASSETS = resources.files("ppp.reporting") / "assets"
TEMPLATE = "page.html.jinja"
STYLES = ("page.css", "session.css")
THEME_SCRIPT = "theme.js"  # runs in the head, before anything is painted
# In the order in which they need each other; they become one script.
SCRIPTS = ("text.js", "data.js", "state.js", "list.js", "reward.js", "session.js", "tokens.js", "main.js")


def write_page(report: Report, path: Path, *, watch: bool = False) -> str:
    """Write the page of a report; a page that was there is replaced in one go.

    Args:
        path: the file to write; its folder exists.
        watch: the page is served by `watch.py` and asks it for newer versions; otherwise it may not connect anywhere.

    Returns:
        The version that a watched page tells its server; "" for others.
    """
    version = uuid.uuid4().hex if watch else ""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.writelines(page_parts(report, version))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return version


def page_parts(report: Report, version: str) -> Iterator[str]:
    """The page piece by piece: what is read first comes first, then block after block."""
    yield render_head(report, version)
    counts, lengths = [], []
    for place, (count, length, packed) in enumerate(blocks(report.sessions)):
        counts.append(count)
        lengths.append(length)
        yield data_element(f"block-{place}", packed)
    for place, session in enumerate(report.sessions):
        if session.tokens is not None:
            yield data_element(f"tokens-{place}", token_block(session.tokens))
    yield data_element("blocks", pack(json.dumps({"counts": counts, "chars": lengths})))
    yield "</body>\n</html>\n"


def data_element(name: str, packed: str) -> str:
    return f'<script type="application/octet-stream" id="{name}">{packed}</script>\n'


def render_head(report: Report, version: str) -> str:
    """The page up to its sessions: the head with its policy, the scores, figures and tables, and the script."""
    theme, script = read_asset(THEME_SCRIPT), page_script()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"visible": visible, "score": score, "change": change}
    template = environment.from_string(read_asset(TEMPLATE))
    return template.render(
        report=report,
        version=version,
        policy=content_policy([theme, script], connects=bool(version)),
        style=Markup("".join(map(read_asset, STYLES))),
        theme=Markup(theme),
        script=Markup(script),
        figures=[(figure, Markup(own_ids(figure))) for figure in report.figures],
        index=pack(json.dumps(build_index(report.sessions), separators=(",", ":"))),
    )


def read_asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def page_script() -> str:
    """All of the page's script as one function, so that no name of ours becomes one of the window's."""
    body = "\n".join(read_asset(name) for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{body}\n}})();\n'


def content_policy(scripts: list[str], *, connects: bool) -> str:
    """What the browser lets the page do: run these scripts, show its own styles and embedded pictures, nothing else.

    Styles are allowed by place and not by hash, since figures carry them as attributes.
    """
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts]
    rules: dict[str, str] = {
        "default-src": "'none'",
        "script-src": " ".join(hashes),
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    if connects:
        rules["connect-src"] = "'self'"
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def own_ids(figure: Figure) -> str:
    """The SVG of a figure with its name before every id: two figures on one page may use the same ones."""
    prefix = re.sub(r"[^A-Za-z0-9_-]", "-", figure.name)
    svg = figure.svg[figure.svg.find("<svg") :]  # an XML declaration and a doctype have no place within a page
    svg = re.sub(r'(\sid=")', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'((?:xlink:)?href="#)', rf"\g<1>{prefix}-", svg)
    return re.sub(r"(url\(#)", rf"\g<1>{prefix}-", svg)


def score(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.1f}"


def change(headline: Headline) -> dict[str, Any] | None:
    """How a score moved: the difference in points as text, and whether it rose, fell or stayed."""
    if headline.value is None or headline.before is None:
        return None
    points = round(headline.value - headline.before, 1)
    kind = "up" if points > 0 else "down" if points < 0 else "same"
    sign = "+" if points > 0 else "\u2212" if points < 0 else "\u00b1"
    return {"kind": kind, "text": f"{sign}{abs(points):.1f}"}
