"""Ask user models about the labelled cases: verdicts on questions, sources of answers, and attacks on verdicts.

Every case is asked of every model; a case without an answer is counted, not guessed. What the numbers mean is defined
in `measures.py`; the command with its options and tables is `cli.py`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, TypeVar

from tqdm import tqdm

from ppp.agreement.measures import (
    LabelledAnswer,
    Record,
    attacks,
    labelled_answers,
    rule_verdict,
    scenes,
    summarize_attacks,
    summarize_efforts,
    summarize_pair,
    summarize_verdicts,
)
from ppp.chat.gateway import ChatGateway
from ppp.chat.structured import structured_chat
from ppp.labelled import LabelledQuestion, labelled_questions
from ppp.preferences import PREFERENCES
from ppp.prompts import load_prompt
from ppp.types import Effort, InfrastructureError
from ppp.users.evidence import TASK, UNKNOWN, Evidence
from ppp.users.judge import judge_question
from ppp.users.llm import LLMUser
from ppp.users.llm_options import LLMUserOptions, LLMUserService

logger = logging.getLogger(__name__)

T = TypeVar("T")
ALONE, WITH_JUDGE = "alone", "with judge_model"
CLAIMED_EFFORT = {TASK: Effort.LOW, UNKNOWN: Effort.MEDIUM}  # any other source: high


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """What is measured.

    Attributes:
        options: of the users, as in a recipe; every entry of `user_models` is measured, whatever its weight.
        with_attacks: also attack each model's verdicts, with the judge and without.
        max_examples: of each preference, effort level and kind of attack; None for all there are.
    """

    options: Mapping[str, Any]
    with_attacks: bool = False
    max_examples: int | None = None


class Seat(LLMUserService):
    """One model of a service as the only one that plays users, with a judge or without; all else is the service's."""

    def __init__(self, whole: LLMUserService, gateway: ChatGateway, judge: ChatGateway | None) -> None:
        self.options, self.ledger, self.judge = whole.options, whole.ledger, judge
        self._gateway_of_all = gateway

    def gateway_for(self, seed: int) -> ChatGateway:
        return self._gateway_of_all


class Interview:
    """Many calls at once, no more than an endpoint takes, with a progress bar.

    A gateway's deadline runs while a call waits for its turn there, so that all the waiting is done here.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[ChatGateway, Callable[[], Awaitable[None]]]] = []
        self.num_unanswered = 0
        self._last_error: InfrastructureError | None = None

    def add(self, gateway: ChatGateway, ask: Callable[[], Awaitable[T]], keep: Callable[[T | None], None]) -> None:
        """Plan one call; `keep` gets what it brings, None if the endpoint fails."""

        async def call() -> None:
            try:
                found: T | None = await ask()
            except InfrastructureError as error:
                logger.debug("no answer: %s", error)
                self.num_unanswered += 1
                self._last_error, found = error, None
            keep(found)

        self._calls.append((gateway, call))

    async def run(self) -> None:
        """Make all calls.

        Raises:
            RunStoppedError: an endpoint will not come back, or the budget is used up.
            InfrastructureError: not one call brought an answer.
        """
        slots = {gateway: asyncio.Semaphore(gateway.endpoint.max_concurrency) for gateway, _ in self._calls}
        with tqdm(total=len(self._calls), desc="users check", unit="case") as bar:

            async def in_turn(gateway: ChatGateway, call: Callable[[], Awaitable[None]]) -> None:
                async with slots[gateway]:
                    await call()
                bar.update()

            tasks = [asyncio.ensure_future(in_turn(gateway, call)) for gateway, call in self._calls]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        if self._last_error is not None and self.num_unanswered == len(self._calls):
            raise InfrastructureError(
                f"not one answer in {self.num_unanswered} cases; the last error: {self._last_error}"
            )


def model_names(gateways: Sequence[ChatGateway]) -> list[str]:
    """A name for each: its model, with the address or a number where that is not enough."""
    names = [gateway.endpoint.model for gateway in gateways]
    labels = [gateway.endpoint.label for gateway in gateways]
    names = [label if names.count(name) > 1 else name for name, label in zip(names, labels, strict=True)]
    return [
        f"{name} ({names[:index].count(name) + 1})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def first_of_each(cases: Iterable[T], kind: Callable[[T], Hashable], number: int | None) -> list[T]:
    """The first `number` cases of each kind, all of them for None; order kept."""
    seen: dict[Hashable, int] = defaultdict(int)
    kept = []
    for case in cases:
        seen[kind(case)] += 1
        if number is None or seen[kind(case)] <= number:
            kept.append(case)
    return kept


def choose_questions(number: int | None) -> list[LabelledQuestion]:
    """At most `number` questions of each preference, those that follow and those that do not in turns."""
    ranks: dict[tuple[str, bool], int] = defaultdict(int)
    ranked = []
    for question in labelled_questions():
        key = (question.preference, question.follows)
        ranked.append((ranks[key], question))
        ranks[key] += 1
    if number is not None:
        ranked.sort(key=lambda pair: pair[0])  # stable: the order of the file within a rank
    return first_of_each([question for _, question in ranked], lambda question: question.preference, number)


async def check_users(plan: CheckPlan) -> dict[str, Any]:
    """Measure all models of a plan; returns the report as JSON values.

    Raises:
        RecipeError: the options are wrong, or a model cannot be reached.
        RunStoppedError: an endpoint went away, or the budget is used up.
        InfrastructureError: no model gave a single usable answer.
    """
    service = LLMUserService(LLMUserOptions.parse(plan.options))
    try:
        await service.check()
        interview = Interview()
        names = model_names(service.gateways)
        raters = dict(zip(names, service.gateways, strict=True))
        users = {name: gateway for name, gateway in raters.items() if gateway is not service.judge}
        verdicts = {name: ask_verdicts(interview, gateway, plan.max_examples) for name, gateway in raters.items()}
        efforts = {name: ask_sources(interview, gateway, plan.max_examples) for name, gateway in users.items()}
        ways = {ALONE: None} | ({WITH_JUDGE: service.judge} if service.judge else {})
        attacked = {
            name: {
                way: ask_attacked(interview, Seat(service, gateway, judge), plan.max_examples)
                for way, judge in ways.items()
            }
            for name, gateway in users.items()
            if plan.with_attacks
        }
        await interview.run()
    finally:
        await service.close()
    return {
        "models": list(users),
        "judge_model": next((name for name in names if raters[name] is service.judge), None),
        "verdicts": {name: summarize_verdicts(records) for name, records in verdicts.items()},
        "efforts": {name: summarize_efforts(records) for name, records in efforts.items()},
        "pairs": pair_up(verdicts, efforts),
        "attacks": {
            name: {way: summarize_attacks(records) for way, records in ways.items()} for name, ways in attacked.items()
        },
        "num_unanswered": interview.num_unanswered,
        "ledger": service.summary(),
        "ledger_table": service.gateways[0].ledger.table(),
        "records": {"verdicts": verdicts, "efforts": efforts, "attacks": attacked},
    }


def pair_up(verdicts: Mapping[str, Sequence[Record]], efforts: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """How far each two raters agree with each other, whatever the truth; a judge gives verdicts only."""
    pairs = []
    for first, second in combinations(verdicts, 2):
        pair: dict[str, Any] = {"models": [first, second]}
        pair["verdicts"] = summarize_pair(verdicts[first], verdicts[second], "verdict")
        if first in efforts and second in efforts:
            pair["efforts"] = summarize_pair(efforts[first], efforts[second], "claimed")
        pairs.append(pair)
    return pairs


def ask_verdicts(interview: Interview, gateway: ChatGateway, number: int | None) -> list[dict[str, Any]]:
    """Plan a verdict on each labelled question, also where a rule decides; users who count need none."""
    records = []
    for question in choose_questions(number):
        record: dict[str, Any] = {
            "id": question.id,
            "preference": question.preference,
            "hard": question.hard,
            "truth": question.follows,
            "rule": rule_verdict(question),
            "asked": bool(PREFERENCES[question.preference].criterion),
            "verdict": None,
        }
        records.append(record)
        if record["asked"]:
            interview.add(gateway, partial(_verdict, gateway, question), partial(_keep, [record], "verdict"))
    return records


async def _verdict(gateway: ChatGateway, question: LabelledQuestion) -> bool:
    return await judge_question(gateway, question.preference, question.question, question.earlier_turns())


def _keep(records: Sequence[dict[str, Any]], column: str, value: Any) -> None:
    for record in records:
        record[column] = value


def ask_sources(interview: Interview, gateway: ChatGateway, number: int | None) -> list[dict[str, Any]]:
    """Plan to ask where each labelled answer comes from, and to grade what is claimed."""
    records = []
    for case in first_of_each(labelled_answers(), lambda answer: answer.effort, number):
        record: dict[str, Any] = {"id": case.id, "truth": case.effort.label, "claimed": None, "graded": None}
        records.append(record)
        interview.add(gateway, partial(source_of, gateway, case), partial(_keep_source, record, case))
    return records


def _keep_source(record: dict[str, Any], case: LabelledAnswer, source: str | None) -> None:
    if source is not None:
        record["claimed"] = CLAIMED_EFFORT.get(source, Effort.HIGH).label
        record["graded"] = graded(case, source).label


async def source_of(gateway: ChatGateway, case: LabelledAnswer) -> str:
    """Where a model says that a labelled answer comes from: TASK, UNKNOWN or the name of a source.

    Raises:
        InfrastructureError: it does not say.
    """
    scene = scenes()[case.task]
    data = {
        "report": scene.task.precise_prompt,
        "sources": {source.name: source.text for source in scene.sources},
        "question": case.question,
        "answer": case.answer,
    }
    messages = [
        {"role": "system", "content": load_prompt("check_source.txt")},
        {"role": "user", "content": json.dumps(data, ensure_ascii=False)},
    ]
    names = [TASK, *data["sources"], UNKNOWN]
    schema = {
        "type": "object",
        "properties": {"source": {"type": "string", "enum": names}},
        "required": ["source"],
        "additionalProperties": False,
    }
    reply = await structured_chat(gateway, messages, schema, "source")
    return str(reply["source"])


def graded(case: LabelledAnswer, claim: str) -> Effort:
    """The effort of a labelled answer as a session would count it, given the claim."""
    scene = scenes()[case.task]
    evidence = Evidence(scene.task.precise_prompt, scene.sources, said=scene.task.prompt)
    return evidence.grade(case.question, case.answer, claim).effort


def ask_attacked(interview: Interview, seat: Seat, number: int | None) -> list[dict[str, Any]]:
    """Plan to ask a user each attacked question and, where only a judge can tell, the same one without the attack."""
    records: list[dict[str, Any]] = []
    without: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for attack in first_of_each(attacks("verdict"), lambda attack: (attack.kind, attack.plain is None), number):
        by_rule = attack.plain is None
        record: dict[str, Any] = {"id": attack.id, "kind": attack.kind, "preference": attack.preference}
        record |= {"by_rule": by_rule, "plain": False if by_rule else None, "attacked": None}
        records.append(record)
        ask = partial(_follows, seat, attack.task, attack.preference, attack.question)
        interview.add(seat.gateway_for(0), ask, partial(_keep, [record], "attacked"))
        if attack.plain is not None:
            without[attack.task, attack.preference, attack.plain].append(record)
    for (task, preference, question), shared in without.items():
        ask = partial(_follows, seat, task, preference, question)
        interview.add(seat.gateway_for(0), ask, partial(_keep, shared, "plain"))
    return records


async def _follows(seat: Seat, task: str, preference: str, question: str) -> bool:
    """What a session would count as the verdict on a question."""
    scene = scenes()[task]
    user = LLMUser(scene.task_for(preference), sources=scene.sources, service=seat)
    return (await user.answer(question, [])).follows_preference
