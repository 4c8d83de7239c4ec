"""One turn as vLLM's `/v1/completions` reads and writes it: token ids in, token ids and log-probabilities out.

Bytes in, bytes out, nothing of the network: `server_link.py` sends them. Everything here runs once per turn for
thousands of sessions on one thread, which is why prompts are encoded piece by piece.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import orjson

from ppp.engines.base import ENGINE_KIND, Generation, GenerationRequest
from ppp.types import InfrastructureError

_TOKEN = "token_id:"  # what `return_tokens_as_token_ids` puts before each id
_FINISHED = frozenset({"stop", "length"})


class Encoder:
    """Writes requests.

    Args:
        eos_id: the token that ends a turn; no other does, whatever the server's generation config says.
        temperature, top_k, top_p: of the sampling. All other ways to bend the distribution are switched off by name,
            because a server takes what is not named from the model's generation config.
        max_prompts: prompts whose encoding is kept, to be appended to.
    """

    def __init__(self, eos_id: int, temperature: float, top_k: int, top_p: float, max_prompts: int) -> None:
        self._fixed = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "stop_token_ids": [eos_id],
            "ignore_eos": True,
            "logprobs": 0,  # of the sampled token, without alternatives
            # Not `return_token_ids`, which sends the prompt back as well: at 32k tokens of history that costs us 0.6 ms
            # a turn to read, and the server more to write.
            "return_tokens_as_token_ids": True,
        }
        self._max_prompts = max_prompts
        self._prompts: OrderedDict[int, tuple[list[int], int, bytes]] = OrderedDict()
        self.start_phase(None)

    def start_phase(self, model_name: str | None) -> None:
        """Name the model from now on (None: the server's own), and forget the prompts of the phase before."""
        model = {} if model_name is None else {"model": model_name}
        self._head = orjson.dumps({**model, **self._fixed})[:-1] + b',"prompt":['
        self._prompts.clear()

    def encode(self, request: GenerationRequest) -> bytes:
        """The body of a request."""
        seed = noise_seed(request.noise_key, request.position)
        tail = b'],"max_tokens":%d,"seed":%d}' % (request.max_tokens, seed)
        return b"".join((self._head, self._prompt(request.noise_key, request.prompt_ids), tail))

    def _prompt(self, key: int, ids: list[int]) -> bytes:
        """The ids, separated by commas. A trajectory's list is only ever appended to, so what was encoded holds."""
        known, num, text = self._prompts.pop(key, (None, 0, b""))
        if known is not ids or num > len(ids):
            num, text = 0, b""
        if num < len(ids):
            new = orjson.dumps(ids[num:] if num else ids)[1:-1]
            text = b"%b,%b" % (text, new) if text else new
        self._prompts[key] = (ids, len(ids), text)
        if len(self._prompts) > self._max_prompts:
            self._prompts.popitem(last=False)
        return text


def noise_seed(noise_key: int, position: int) -> int:
    """The seed of a turn: a function of the trajectory and the turn's place in it, never of arrival order; 63 bits."""
    digest = blake2b(b"%d/%d" % (noise_key, position), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def decode(body: bytes, max_tokens: int, eos_id: int) -> Generation:
    """What a server answered.

    Raises:
        InfrastructureError: that is not a whole turn of at most `max_tokens` tokens with their log-probabilities.
    """
    try:
        choice: dict[str, Any] = orjson.loads(body)["choices"][0]
        found = choice["logprobs"]
        tokens: Sequence[str] = found["tokens"]
        ids = [int(token.removeprefix(_TOKEN)) for token in tokens]
        logprobs = list(map(float, found["token_logprobs"]))
        reason = choice["finish_reason"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InfrastructureError(f"engine: the answer cannot be read: {error!r}", kind=ENGINE_KIND) from error
    if len(ids) != len(logprobs) or not 1 <= len(ids) <= max_tokens or not tokens[0].startswith(_TOKEN):
        raise InfrastructureError(
            f"engine: {len(ids)} tokens with {len(logprobs)} log-probabilities for a limit of {max_tokens}",
            kind=ENGINE_KIND,
        )
    if reason not in _FINISHED:  # "abort": somebody paused the server or shut it down
        raise InfrastructureError(f"engine: the turn ended by {reason!r}", kind=ENGINE_KIND)
    return Generation(ids, logprobs, "stop" if ids[-1] == eos_id else "length")
