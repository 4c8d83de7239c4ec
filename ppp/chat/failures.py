"""Why a request to a chat model failed: its kind for the ledger, whether to try again, and a text without secrets.

No request is sent here; `gateway.py` does that and decides what follows from a failure.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import aiohttp

from ppp.chat.ledger import Usage

MAX_TEXT = 300  # characters of what a server said that go into a message
MAX_RAW_TEXT = 4000
MIN_KEY_PART = 5  # characters of a key that are worth hiding

RETRIED_STATUS = (408, 409, 425, 429)  # and 5xx
FINAL_STATUS = {  # these never come right during a run
    401: "the key is refused",
    402: "the account has to be paid for",
    403: "access is denied",
    404: "there is no such model or path",
}
# `code` or `type` of a 429 that waiting does not cure.
QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "account_deactivated")
# What endpoints call the settings that some of their models do not have, and what to send instead (None: leave it out).
REPLACED_PARAMETERS = {
    "max_tokens": "max_completion_tokens",
    "temperature": None,
    "seed": None,
    "parallel_tool_calls": None,
}

CONTEXT_LENGTH = "context length"  # the kind of a request that is longer than what the model can take in
CONTENT_FILTER = "content_filter"  # of one that a filter of the provider stopped, as `finish_reason` has it
TOO_LONG_STATUS = (400, 413, 422, 500)
# OpenAI and vLLM, SGLang, llama.cpp, Anthropic, Gemini, TGI: each in its own words.
_TOO_LONG = re.compile(
    r"context[ _](length|size|window|limit)|max(imum)?[ _]model[ _]len|prompt is too long|input token count .* exceeds|"
    r"inputs.{0,5} tokens \+ .{0,5}max_new_tokens",
    re.IGNORECASE,
)


@dataclass(eq=False)
class RequestFailure(Exception):
    """One request that brought no answer.

    Attributes:
        kind: for the ledger: a status code, `CONTEXT_LENGTH`, "timeout", "cut-off", "connection", "invalid JSON",
            "empty answer", ...
        text: what happened, without secrets, bounded.
        status: HTTP status, None if there was none.
        retry: whether the same request may succeed later.
        is_final: no request of this run will ever succeed.
        retry_after_s: how long the server asked to wait.
        unsupported: the field of the request that this model does not have, where the server says so.
        usage: tokens that the endpoint has charged nevertheless.
    """

    kind: str
    text: str
    status: int | None = None
    retry: bool = False
    is_final: bool = False
    retry_after_s: float | None = None
    unsupported: str | None = None
    usage: Usage | None = None

    def __str__(self) -> str:
        return self.text


def redact(text: str, key: str | None) -> str:
    """The text without the key, any longer part of it, or a masked form (`sk-ab***yz`) as some servers quote it."""
    text = re.sub(r"[^\s'\"`:,;=()]*\*{2,}[^\s'\"`,;()]*", "[key]", text)
    if not key:
        return text
    low_text, low_key = text.lower(), key.lower()
    least = min(MIN_KEY_PART, len(low_key))
    parts, start = [], 0
    while start < len(text):
        length = least
        if low_text[start : start + least] in low_key and start + least <= len(text):
            while start + length < len(text) and low_text[start : start + length + 1] in low_key:
                length += 1
            parts.append("[key]")
            start += length
        else:
            parts.append(text[start])
            start += 1
    return "".join(parts)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: `retry-after-ms`, or `retry-after` in seconds or as a date."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - time.time()
            except ValueError:
                continue
        if seconds == seconds:  # not NaN
            return max(0.0, seconds)
    return None


def of_status(status: int, headers: Mapping[str, str], content: bytes, key: str | None) -> RequestFailure:
    """The failure behind a status of 400 or more."""
    message, code, parameter = _error_fields(content)
    text = redact(" ".join(message[:MAX_RAW_TEXT].split()), key)[:MAX_TEXT]
    is_quota = status == 429 and any(name in QUOTA_CODES for name in code)
    is_final = status in FINAL_STATUS or is_quota
    meaning = FINAL_STATUS.get(status, "the quota is used up" if is_quota else "")
    parts = [f"status {status}", f" ({meaning})" if meaning else "", f": {text}" if text else ""]
    kind = "quota" if is_quota else str(status)
    said = " ".join((*code, message[:MAX_RAW_TEXT]))
    if status in TOO_LONG_STATUS and _TOO_LONG.search(said):
        kind = CONTEXT_LENGTH
    elif status == 400 and CONTENT_FILTER in code:
        kind = CONTENT_FILTER
    return RequestFailure(
        kind=kind,
        text="".join(parts),
        status=status,
        retry=not is_final and kind != CONTEXT_LENGTH and (status in RETRIED_STATUS or status >= 500),
        is_final=is_final,
        retry_after_s=retry_after(headers),
        unsupported=_unsupported(code, parameter, message) if status in (400, 422) else None,
    )


def of_exception(error: Exception, key: str | None) -> RequestFailure:
    """The failure behind an error of the transport, told by its innermost cause."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, (TimeoutError, aiohttp.ClientError)):
        cause = cause.__cause__
    if isinstance(cause, (TimeoutError, aiohttp.ServerTimeoutError)):
        kind = "timeout"
    elif isinstance(cause, (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError)):
        kind = "cut-off"
    else:
        kind = "connection"
    text = redact(" ".join(f"{type(cause).__name__}: {cause}"[:MAX_RAW_TEXT].split()), key)[:MAX_TEXT]
    return RequestFailure(kind, f"{kind} ({text})", retry=True)


def _error_fields(content: bytes) -> tuple[str, tuple[str, ...], str]:
    """Message, codes and parameter of an error body: OpenAI's form, its relatives, or plain text."""
    text = content[: 16 * MAX_RAW_TEXT].decode("utf-8", "replace")
    try:
        body = json.loads(text)
    except ValueError:
        return text, (), ""
    fields = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(fields, dict):
        return str(fields), (), ""
    message = fields.get("message") or fields.get("detail") or text
    codes = tuple(str(fields[name]) for name in ("code", "type") if fields.get(name) is not None)
    return str(message), codes, str(fields.get("param") or "")


def _unsupported(codes: tuple[str, ...], named: str, message: str) -> str | None:
    """Which field of `REPLACED_PARAMETERS` the server does not have; some only say it in the message."""
    words = r"unsupported|not support|unrecogni[sz]ed|unknown|extra (inputs|fields)"
    if not any(code.startswith("unsupported") for code in codes) and not re.search(words, message, re.IGNORECASE):
        return None
    for name in REPLACED_PARAMETERS:
        if named == name or (not named and re.search(rf"['\"`]{name}['\"`]", message)):
            return name
    return None
