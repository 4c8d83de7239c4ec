"""What a recipe says of users played by a language model, and the gateways, cache and ledger that they share.

Everything that can be wrong with the options is found here, before a model is loaded. The user itself is in `llm.py`,
what an endpoint can be told in `chat/endpoint.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, TypeVar

from ppp.chat.cache import CACHE_MODES, CacheMode, ChatCache
from ppp.chat.gateway import ChatEndpoint, ChatGateway
from ppp.chat.ledger import ChatLedger
from ppp.checks import refuse, refuse_option, refuse_unknown
from ppp.types import RecipeError
from ppp.users.base import UserService
from ppp.users.people import HARDNESS

T = TypeVar("T")

ENDPOINT_FIELDS = tuple(field.name for field in fields(ChatEndpoint))
# What a judge shares with the users unless it says otherwise: how to reach it, not how to sample it or what it costs.
SHARED_WITH_JUDGE = (
    *("base_url", "api_key_env", "max_concurrency", "requests_per_minute", "tokens_per_minute"),
    *("timeout_s", "deadline_s", "max_retries", "max_outage_s"),
)
# option -> default; the fields of an endpoint come on top
OWN_OPTIONS: dict[str, Any] = {
    "user_models": None,
    "judge_model": None,
    "hardness": "cooperative",
    "max_answers": 10,
    "sample_per_session": False,
    "cache": "off",
    "cache_path": None,
    "max_cost": None,
    "max_calls": None,
}


@dataclass(frozen=True)
class LLMUserOptions:
    """The options of a run's users, checked.

    Attributes:
        models: who plays the users, each with its weight: a session draws one of them.
        judge: who decides whether a question follows a preference where no rule can; None: the user itself.
        hardness: a key of `HARDNESS`.
        max_answers: questions of a session that are answered; each further one is refused without asking a model.
        sample_per_session: send a seed with each request, so that equal conversations of different tasks may differ.
        cache: "off", "read", "write" or "replay", see `ChatCache`.
        cache_path: the file of the cache.
        max_cost, max_calls: the budget, see `ChatLedger`.
    """

    models: tuple[tuple[float, ChatEndpoint], ...]
    judge: ChatEndpoint | None
    hardness: str
    max_answers: int
    sample_per_session: bool
    cache: CacheMode
    cache_path: str | None
    max_cost: float | None
    max_calls: int | None

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> LLMUserOptions:
        """Read the recipe's mapping.

        Raises:
            RecipeError: an unknown option or a value that cannot be used; names `user.<option>`.
        """
        for name in options:
            if name not in OWN_OPTIONS and name not in ENDPOINT_FIELDS and name != "api_key":
                raise refuse_option("user", name, (*OWN_OPTIONS, *ENDPOINT_FIELDS))
        own = {name: options.get(name, default) for name, default in OWN_OPTIONS.items()}
        endpoint = {name: value for name, value in options.items() if name not in OWN_OPTIONS}
        _check_own(own)
        models = _models(own.pop("user_models"), endpoint)
        judge = _judge(own.pop("judge_model"), endpoint)
        parsed = cls(models=models, judge=judge, **own)
        ledger = parsed.open_ledger()
        for used in (*(model for _, model in models), *([judge] if judge else [])):
            _in_field(partial(ChatGateway, used, ledger=ledger))  # for prices that a budget needs
        return parsed

    def open_ledger(self) -> ChatLedger:
        """A new ledger with this budget."""
        return _in_field(partial(ChatLedger, self.max_cost, self.max_calls))


def _in_field(make: Callable[[], T]) -> T:
    """What `make` returns, its errors under the name that the recipe has for the field."""
    try:
        return make()
    except RecipeError as error:
        raise RecipeError(f"user.{error}") from error


def _check_own(own: Mapping[str, Any]) -> None:
    if not isinstance(own["hardness"], str) or own["hardness"] not in HARDNESS:
        raise refuse_unknown("user.hardness", own["hardness"], HARDNESS)
    if type(own["max_answers"]) is not int or own["max_answers"] < 1:  # a bool is an int to isinstance
        raise refuse("user.max_answers", own["max_answers"], "must be an integer of at least 1")
    if type(own["sample_per_session"]) is not bool:
        raise refuse("user.sample_per_session", own["sample_per_session"], "must be true or false")
    if not isinstance(own["cache"], str) or own["cache"] not in CACHE_MODES:
        raise refuse_unknown("user.cache", own["cache"], CACHE_MODES)
    path = own["cache_path"]
    if path is not None and not (isinstance(path, str) and path.strip()):
        raise refuse("user.cache_path", path, "must be the path of a file")
    if own["cache"] != "off" and path is None:
        raise refuse("user.cache_path", path, f"must be the path of a file, as user.cache is {own['cache']!r}")
    for name in ("max_cost", "max_calls"):
        if isinstance(own[name], bool):
            raise refuse(f"user.{name}", own[name], "must be a number above 0, or null for no limit")


def _models(choice: Any, endpoint: Mapping[str, Any]) -> tuple[tuple[float, ChatEndpoint], ...]:
    """The models that play users; the fields outside of `user_models` are defaults of each entry."""
    if choice is None:
        return ((1.0, ChatEndpoint.from_options(endpoint, "user")),)
    if "model" in endpoint:
        raise refuse("user.model", endpoint["model"], "must be left out where user.user_models names the models")
    if not isinstance(choice, list) or not choice:
        raise refuse("user.user_models", choice, "must be a list of {model: ..., weight: ...}, not empty")
    models = []
    for index, entry in enumerate(choice):
        where = f"user.user_models[{index}]"
        if not isinstance(entry, Mapping):
            raise refuse(where, entry, "must be a mapping with a model and, optionally, its weight")
        weight = entry.get("weight", 1)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
            raise refuse(f"{where}.weight", weight, "must be a number above 0")
        own = {name: value for name, value in entry.items() if name != "weight"}
        models.append((float(weight), ChatEndpoint.from_options(_merged(endpoint, own), where)))
    return tuple(models)


def _judge(choice: Any, endpoint: Mapping[str, Any]) -> ChatEndpoint | None:
    if choice is None:
        return None
    if not isinstance(choice, str | Mapping):
        raise refuse("user.judge_model", choice, "must be the name of a model, or a mapping with a model")
    own = {"model": choice} if isinstance(choice, str) else choice
    shared = {name: endpoint[name] for name in SHARED_WITH_JUDGE if name in endpoint}
    return ChatEndpoint.from_options(_merged(shared, own), "user.judge_model")


def _merged(defaults: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """An entry over its defaults; a key that is meant for one host never goes to another."""
    other_host = "base_url" in own and own["base_url"] != defaults.get("base_url")
    return {name: value for name, value in defaults.items() if not (other_host and name == "api_key_env")} | dict(own)


class LLMUserService(UserService):
    """The models behind the users of a run: a gateway for each, one ledger, one cache.

    Raises:
        RecipeError: the cache cannot be opened; names `user.cache_path`.
    """

    def __init__(self, options: LLMUserOptions) -> None:
        self.options = options
        self.ledger = self._ledger = options.open_ledger()
        self._cache = None
        if options.cache != "off":
            self._cache = _in_field(partial(ChatCache, options.cache_path, options.cache))
        self._users = [(weight, self._gateway(endpoint)) for weight, endpoint in options.models]
        self.judge = self._gateway(options.judge) if options.judge else None

    def _gateway(self, endpoint: ChatEndpoint) -> ChatGateway:
        return ChatGateway(endpoint, cache=self._cache, ledger=self._ledger)

    def gateway_for(self, seed: int) -> ChatGateway:
        """Who plays the user of the session with this seed."""
        weights = [weight for weight, _ in self._users]
        return random.Random(f"model-{seed}").choices([gateway for _, gateway in self._users], weights)[0]

    @property
    def gateways(self) -> list[ChatGateway]:
        """All of them, the judge's last."""
        return [gateway for _, gateway in self._users] + ([self.judge] if self.judge else [])

    async def check(self) -> None:
        """Send one tiny request to each model.

        Raises:
            RecipeError: one of them cannot be used; names the field, model, address and cause.
        """
        for gateway in self.gateways:
            field = "user.judge_model" if gateway is self.judge else "user"
            try:
                await gateway.check()
            except RecipeError as error:
                raise RecipeError(f"{field}: {error}") from error

    async def close(self) -> None:
        for gateway in self.gateways:
            await gateway.close()
        if self._cache is not None:
            self._cache.close()

    def summary(self) -> dict[str, Any]:
        return self._ledger.summary()
