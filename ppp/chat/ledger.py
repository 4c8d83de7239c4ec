"""What the calls to chat models took: calls, tokens, money, seconds and failures; and the budget that ends a run.

A ledger is kept per process and shared by the gateways of a run; limits are those of the whole run, so that each of
its processes gets its share. It sees no text. Read `gateway.py` next for who writes into it.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ppp.types import RecipeError, RunStoppedError

# Latencies are counted in bins that grow by 5 % from a millisecond on: bounded, mergeable, and right within 2.5 %.
FIRST_BIN_S, BIN_GROWTH = 0.001, 1.05


def world_size() -> int:
    """Processes of this run, as torchrun and accelerate announce them."""
    return max(1, int(os.environ.get("WORLD_SIZE", "1")))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one reply; `cached_prompt_tokens` are those that the endpoint had in its own prefix cache."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Prices:
    """USD per million tokens. Both main prices have to be known for a cost to be known."""

    input: float | None = None
    output: float | None = None
    cached_input: float | None = None

    def cost(self, usage: Usage) -> float | None:
        """USD, or None where a price is missing."""
        if self.input is None or self.output is None:
            return None
        cached_price = self.input if self.cached_input is None else self.cached_input
        fresh = usage.prompt_tokens - usage.cached_prompt_tokens
        dollars = fresh * self.input + usage.cached_prompt_tokens * cached_price + usage.completion_tokens * self.output
        return dollars / 1e6


@dataclass
class Account:
    """The counts of one model at one endpoint.

    Attributes:
        num_calls: answers asked for, from our cache or not.
        num_cached: answered from our cache.
        num_requests: sent to the endpoint, retries included.
        num_given_up: calls that got no answer in the end.
        cost: USD, None where no price is known.
        failures: requests (and, for "wrong schema", answers) that were no use, by kind.
        latencies: answered requests by bin.
    """

    num_calls: int = 0
    num_cached: int = 0
    num_requests: int = 0
    num_given_up: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    cost: float | None = None
    failures: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)

    def quantile(self, share: float) -> float | None:
        """Seconds within which `share` of the answered requests came back; None before the first."""
        wanted, seen = share * sum(self.latencies.values()), 0
        for index in sorted(self.latencies):
            seen += self.latencies[index]
            if seen >= wanted:
                return FIRST_BIN_S * BIN_GROWTH ** (index + 0.5)
        return None

    def summary(self) -> dict[str, Any]:
        """The account as JSON values."""
        seconds = {f"p{share}_s": self.quantile(share / 100) for share in (50, 90, 99)}
        return {
            "calls": self.num_calls,
            "requests": self.num_requests,
            "given_up": self.num_given_up,
            "cached_share": self.num_cached / self.num_calls if self.num_calls else 0.0,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_prompt_tokens": self.cached_prompt_tokens,
            "cost": None if self.cost is None else round(self.cost, 6),
            **{name: None if value is None else round(value, 3) for name, value in seconds.items()},
            "failures": dict(self.failures.most_common()),
        }


COUNTS = (
    "num_calls",
    "num_cached",
    "num_requests",
    "num_given_up",
    "prompt_tokens",
    "completion_tokens",
    "cached_prompt_tokens",
)


class ChatLedger:
    """Accounts by model, and the budget.

    Args:
        max_cost: USD for the whole run; needs the prices of every model.
        max_calls: requests sent in the whole run, retries included.
    """

    def __init__(self, max_cost: float | None = None, max_calls: int | None = None) -> None:
        for name, value in (("max_cost", max_cost), ("max_calls", max_calls)):
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
                raise RecipeError(f"{name}: {value!r} is not allowed; a number above 0, or null for no limit")
        self.max_cost, self.max_calls = max_cost, max_calls
        self.accounts: dict[str, Account] = {}
        self._prices: dict[str, Prices] = {}
        self._num_in_flight = 0

    def open_account(self, name: str, prices: Prices) -> None:
        """Start to count for one model.

        Raises:
            RecipeError: there is a `max_cost`, but no price to reckon with.
        """
        if self.max_cost is not None and prices.cost(Usage()) is None:
            raise RecipeError(
                f"max_cost: {self.max_cost!r} cannot be kept without input_price and output_price of {name}; "
                "set both (USD per million tokens, 0 for a model of your own), or use max_calls"
            )
        self._prices[name] = prices
        account = self.accounts.setdefault(name, Account())
        if account.cost is None:
            account.cost = prices.cost(Usage())

    def begin_request(self, name: str) -> None:
        """Count a request that is about to be sent.

        Raises:
            RunStoppedError: the budget does not allow it.
        """
        spent, sent = self._spent(), sum(account.num_requests for account in self.accounts.values())
        share = world_size()
        of_rank = f" (1/{share} of it in each process)" if share > 1 else ""
        if self.max_calls is not None and sent + 1 > self.max_calls / share:
            raise RunStoppedError(f"The budget is used up: max_calls {self.max_calls}{of_rank}, {sent} requests sent.")
        if self.max_cost is not None:
            # Those under way will cost what the others did on average, so that many at once do not overshoot.
            num_done = sent - self._num_in_flight
            expected = spent / num_done * self._num_in_flight if num_done > 0 else 0.0
            if spent + expected >= self.max_cost / share:
                raise RunStoppedError(
                    f"The budget is used up: max_cost {self.max_cost:g} USD{of_rank}, {spent:.4f} USD spent "
                    f"and {self._num_in_flight} requests under way."
                )
        self.accounts[name].num_requests += 1
        self._num_in_flight += 1

    def end_request(
        self, name: str, *, usage: Usage | None = None, latency_s: float | None = None, failure: str | None = None
    ) -> None:
        """Count how a request ended: `latency_s` of an answer, or the kind of its failure; tokens in both cases."""
        self._num_in_flight -= 1
        account = self.accounts[name]
        if usage is not None:
            account.prompt_tokens += usage.prompt_tokens
            account.completion_tokens += usage.completion_tokens
            account.cached_prompt_tokens += usage.cached_prompt_tokens
            if account.cost is not None:
                account.cost += self._prices[name].cost(usage) or 0.0
        if latency_s is not None:
            bins = math.log(max(latency_s, FIRST_BIN_S) / FIRST_BIN_S, BIN_GROWTH)
            account.latencies[int(bins)] += 1
        if failure is not None:
            account.failures[failure] += 1

    def record(self, name: str, *, cached: bool = False, given_up: bool = False) -> None:
        """Count a call, which is one answer asked for."""
        account = self.accounts[name]
        account.num_calls += 1
        account.num_cached += cached
        account.num_given_up += given_up

    def record_failure(self, name: str, kind: str) -> None:
        """Count an answer that came but was no use."""
        self.accounts[name].failures[kind] += 1

    def _spent(self) -> float:
        return sum(account.cost or 0.0 for account in self.accounts.values())

    def summary(self) -> dict[str, Any]:
        """Totals and the account of each model, as JSON values."""
        total = Account(cost=0.0)
        for account in self.accounts.values():
            _add(total, account)
        return {**total.summary(), "models": {name: account.summary() for name, account in self.accounts.items()}}

    def table(self) -> str:
        """The accounts as text for a log: a line per model, then what failed."""
        titles = ("model", "calls", "cached", "requests", "given up", "tokens in", "out", "p50 s", "p90 s", "p99 s")
        rows = [[*titles, "USD"]]
        for name, account in self.accounts.items():
            values = account.summary()
            numbers = ("calls", "cached_share", "requests", "given_up", "prompt_tokens", "completion_tokens")
            cells = [f"{values[key]:.0%}" if key == "cached_share" else f"{values[key]:,}" for key in numbers]
            seconds = [values[key] for key in ("p50_s", "p90_s", "p99_s")]
            cells += ["-" if value is None else f"{value:.2f}" for value in seconds]
            rows.append([name, *cells, "?" if values["cost"] is None else f"{values['cost']:.4f}"])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        for name, account in self.accounts.items():
            if account.failures:
                kinds = ", ".join(f"{kind} {num:,}" for kind, num in account.failures.most_common())
                lines.append(f"failed requests of {name}: {kinds}")
        return "\n".join(lines)

    def state(self) -> dict[str, Any]:
        """Everything counted so far, as JSON values, for a run that is resumed."""
        return {
            name: {
                **{count: vars(account)[count] for count in COUNTS},
                "cost": account.cost,
                "failures": dict(account.failures),
                "latencies": {str(index): num for index, num in account.latencies.items()},
            }
            for name, account in self.accounts.items()
        }

    def load_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on counting from an earlier `state()`; what was counted here before is added to it."""
        for name, values in state.items():
            earlier = Account(cost=values["cost"])
            vars(earlier).update({count: int(values[count]) for count in COUNTS})
            earlier.failures.update({str(kind): int(num) for kind, num in values["failures"].items()})
            earlier.latencies.update({int(index): int(num) for index, num in values["latencies"].items()})
            _add(self.accounts.setdefault(name, Account(cost=earlier.cost and 0.0)), earlier)


def _add(total: Account, account: Account) -> None:
    """Add one account to another; an unknown cost makes the sum unknown."""
    for count in COUNTS:
        vars(total)[count] += vars(account)[count]
    total.cost = None if total.cost is None or account.cost is None else total.cost + account.cost
    total.failures.update(account.failures)
    total.latencies.update(account.latencies)
