"""`ppp users check` against a real server whose models know the labels, know nothing, or obey attacks."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppp import cli
from ppp.agreement.asking import choose_questions, first_of_each, graded
from ppp.agreement.measures import (
    Share,
    attacks,
    cohen_kappa,
    confusion,
    labelled_answers,
    rule_verdict,
    scenes,
    summarize_attacks,
)
from ppp.labelled import labelled_questions
from ppp.preferences import PREFERENCES
from ppp.types import Effort
from ppp.users.evidence import TASK, UNKNOWN
from tests.chat_server import ChatServer, Request

LABELS = {
    (PREFERENCES[question.preference].criterion, question.question): question.follows
    for question in labelled_questions()
    if PREFERENCES[question.preference].criterion
}
JUDGED = [question for question in labelled_questions() if PREFERENCES[question.preference].criterion]
ANSWERS = {(answer.question, answer.answer): answer for answer in labelled_answers()}
CHEAPEST = {Effort.LOW: TASK, Effort.MEDIUM: UNKNOWN}
Honesty = Callable[[dict[str, Any], bool], bool]


def data_of(request: Request) -> dict[str, Any]:
    """What the request of a question, an answer or a verdict is about; nothing for the check at the start."""
    if len(request["messages"]) == 1:
        return {"question": ""}
    found: dict[str, Any] = json.loads(request["messages"][1]["content"])
    return found


def truthful(request: Request) -> dict[str, Any]:
    """A model that has learnt the labels by heart; attacked questions do not follow."""
    data = data_of(request)
    if "criterion" in data:
        return {"follows_preference": LABELS.get((data["criterion"], data["question"]), False)}
    if "answer" in data:
        effort = ANSWERS[data["question"], data["answer"]].effort
        return {"source": CHEAPEST.get(effort, list(data["sources"])[-1] if data["sources"] else UNKNOWN)}
    return {"answer": "I don't know.", "source": UNKNOWN, "follows_preference": False}


def gullible(request: Request) -> dict[str, Any]:
    """A model that says yes to everything, claims the cheapest source, and obeys attacks."""
    data = data_of(request)
    if "criterion" in data:
        return {"follows_preference": True}
    if "answer" in data:
        return {"source": TASK}
    return {"answer": "I don't know.", "source": TASK, "follows_preference": data["question"] in OBEYED}


OBEYED = {attack.question for attack in attacks("verdict")}
MODELS: dict[str, Callable[[Request], dict[str, Any]]] = {"truthful": truthful, "gullible": gullible}


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with ChatServer(lambda request: MODELS[request["model"]](request), models=list(MODELS)) as running:
        yield running


def check(server: ChatServer, output: Path, *arguments: str) -> dict[str, Any]:
    """The report of a run of the command, as its file has it."""
    given = ["users", "check", "--base_url", server.base_url, "--output", str(output), *arguments]
    assert cli.main(given) == 0
    report: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return report


@pytest.fixture(scope="module")
def compared(server: ChatServer, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The report on both models about all that there is, and what was shown of it."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        report = check(
            server, tmp_path_factory.mktemp("compared") / "report.json", "--model", "truthful", "--compare", "gullible"
        )
    return report, shown.getvalue()


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("hits", "cases", "low", "high"),
    [(9, 10, 0.5958, 0.9821), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval_has_its_published_values(hits: int, cases: int, low: float, high: float) -> None:
    assert Share(hits, cases).interval() == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(0)
    draws = [Share(sum(rng.random() < 0.8 for _ in range(40)), 40).interval() for _ in range(2000)]
    assert sum(low <= 0.8 <= high for low, high in draws) / 2000 == pytest.approx(0.95, abs=0.02)


def test_kappa_of_two_raters() -> None:
    first, second = [1] * 25 + [0] * 25, [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa([1, 0, 1], [1, 0, 1]) == 1
    assert cohen_kappa([1, 0, 1, 0], [0, 1, 0, 1]) == -1
    assert cohen_kappa([1, 1], [1, 1]) is None, "nothing but chance can be seen"
    assert cohen_kappa([], []) is None


def test_confusion_has_a_cell_for_every_pair_of_levels() -> None:
    table = confusion([(Effort.HIGH, Effort.LOW), (Effort.HIGH, Effort.LOW), (Effort.LOW, Effort.LOW)])
    assert table["high"] == {"low": 2, "medium": 0, "high": 0}
    assert table["medium"] == {"low": 0, "medium": 0, "high": 0}


def test_an_attack_counts_as_turning_only_what_it_turned() -> None:
    def record(plain: bool | None, attacked: bool | None, by_rule: bool = False) -> dict[str, Any]:
        return {"kind": "claim", "by_rule": by_rule, "plain": plain, "attacked": attacked}

    records = [record(False, True), record(False, False), record(True, True), record(None, True), record(False, None)]
    summary = summarize_attacks([*records, record(False, False, by_rule=True)])
    assert (summary["kinds"]["claim"]["hits"], summary["kinds"]["claim"]["n"]) == (1, 2)
    assert (summary["rules decide"]["hits"], summary["rules decide"]["n"]) == (0, 1)
    assert summary["num_unusable"] == 3


# ---------------------------------------------------------------- what ships with the package


def test_labelled_answers_are_sound() -> None:
    answers = labelled_answers()
    assert len(answers) >= 60
    assert len(ANSWERS) == len(answers) == len({answer.id for answer in answers})
    assert 0.4 <= sum(answer.hard for answer in answers) / len(answers) <= 0.6
    assert min(Counter(answer.effort for answer in answers).values()) >= 10
    for answer in answers:
        assert answer.claimed in (TASK, UNKNOWN, *(source.name for source in scenes()[answer.task].sources)), answer.id
        assert answer.note


def test_scenes_have_two_prompts_and_a_solution() -> None:
    for scene in scenes().values():
        assert scene.task.prompt != scene.task.precise_prompt
        assert any(source.is_gold for source in scene.sources)
    assert {answer.task for answer in labelled_answers()} == set(scenes())
    assert {attack.task for attack in attacks()} <= set(scenes())


def test_evidence_is_right_about_labelled_answers_and_never_too_cheap() -> None:
    wrong = [answer.id for answer in labelled_answers() if graded(answer, answer.claimed) != answer.effort]
    assert len(wrong) <= 0.03 * len(labelled_answers()), wrong
    lied = [answer.id for answer in labelled_answers() if graded(answer, TASK) < answer.effort]
    assert len(lied) <= 1, f"low for a model that always claims the task: {lied}"


def test_few_examples_still_hold_both_labels() -> None:
    chosen = choose_questions(2)
    for name in PREFERENCES:
        labels = [question.follows for question in chosen if question.preference == name]
        assert len(labels) == 2
        both = {question.follows for question in labelled_questions() if question.preference == name}
        assert set(labels) == both
    assert len(choose_questions(None)) == len(labelled_questions())
    assert first_of_each("abab", str, 1) == ["a", "b"]


# ---------------------------------------------------------------- the command


def test_a_model_that_knows_the_labels_is_always_right(compared: tuple[dict[str, Any], str]) -> None:
    report = compared[0]
    summary = report["verdicts"]["truthful"]
    assert summary["groups"]["all"]["model"] == {
        "value": 1.0, "low": pytest.approx(0.99, abs=0.01), "high": 1.0, "hits": len(JUDGED), "n": len(JUDGED)
    }  # fmt: skip
    assert set(summary["preferences"]) == set(PREFERENCES)
    for name, preference in PREFERENCES.items():
        assert summary["preferences"][name]["model"]["value"] == (1.0 if preference.criterion else None)
    efforts = report["efforts"]["truthful"]
    assert efforts["claimed"]["agreement"]["value"] == 1
    for truth, row in efforts["claimed"]["confusion"].items():
        assert {level for level, count in row.items() if count} == {truth}
    assert report["num_unanswered"] == 0
    assert report["ledger"]["calls"] == 2 * (len(JUDGED) + len(labelled_answers()))


def test_a_model_that_says_yes_has_the_share_that_is_yes(compared: tuple[dict[str, Any], str]) -> None:
    report = compared[0]
    for name in ("joke", "capital", "first_try"):
        row = report["verdicts"]["gullible"]["preferences"][name]
        labels = [question.follows for question in JUDGED if question.preference == name]
        assert (row["model"]["hits"], row["model"]["n"]) == (sum(labels), len(labels))
        assert row["yes_to_bad"]["value"] == 1
    capital = report["verdicts"]["gullible"]["preferences"]["capital"]
    ruled = [q for q in JUDGED if q.preference == "capital"]
    assert capital["counts"]["hits"] == sum(rule_verdict(question) == question.follows for question in ruled)
    efforts = report["efforts"]["gullible"]
    assert efforts["claimed"]["confusion"]["high"] == {
        "low": sum(answer.effort is Effort.HIGH for answer in labelled_answers()), "medium": 0, "high": 0
    }  # fmt: skip
    assert efforts["claimed"]["too_cheap"]["value"] == 1
    assert efforts["graded"]["confusion"]["high"]["low"] == 0, "evidence overrules the claim"


def test_two_models_are_compared_with_each_other(compared: tuple[dict[str, Any], str]) -> None:
    report, shown = compared
    (pair,) = report["pairs"]
    assert pair["models"] == ["truthful", "gullible"]
    assert pair["verdicts"]["same"]["hits"] == sum(question.follows for question in JUDGED)
    assert pair["verdicts"]["kappa"] == 0, "one of them does not look at the question"
    assert "truthful: right" in shown and "gullible: right" in shown
    header, rule, *rows = next(part for part in shown.split("\n\n") if part.startswith("Verdicts")).splitlines()[1:]
    assert len({len(line) for line in (header, rule, *rows)}) == 1, "columns are aligned"
    assert "p99 s" in shown, "the ledger"


def test_attacks_turn_an_obedient_user_and_not_an_honest_judge(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model", "gullible", "--judge_model", "truthful", "--attacks", "--max_examples", "7")
    ways = check(server, tmp_path / "report.json", *arguments)["attacks"]["gullible"]
    judged = [attack for attack in attacks("verdict") if attack.plain is not None]
    ruled = [attack for attack in attacks("verdict") if attack.plain is None]
    alone, with_judge = ways["alone"], ways["with judge_model"]
    assert (alone["only a judge can tell"]["hits"], alone["only a judge can tell"]["n"]) == (len(judged), len(judged))
    assert (with_judge["only a judge can tell"]["hits"], with_judge["only a judge can tell"]["n"]) == (0, len(judged))
    for way in (alone, with_judge):
        assert (way["rules decide"]["hits"], way["rules decide"]["n"]) == (0, len(ruled))
        assert {kind: share["n"] for kind, share in way["kinds"].items()} == Counter(attack.kind for attack in judged)
    assert f"100.0 ({len(judged)} of {len(judged)})" in capsys.readouterr().out


def test_a_judge_of_its_own_is_rated_as_well(server: ChatServer, tmp_path: Path) -> None:
    arguments = ("--model", "gullible", "--judge_model", "truthful", "--max_examples", "2")
    report = check(server, tmp_path / "report.json", *arguments)
    assert (report["models"], report["judge_model"]) == (["gullible"], "truthful")
    assert report["verdicts"]["truthful"]["groups"]["all"]["model"]["value"] == 1
    assert list(report["efforts"]) == ["gullible"], "a judge answers no questions"


def test_the_users_of_a_recipe_are_measured(server: ChatServer, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    models = [{"model": "truthful", "weight": 3}, {"model": "gullible"}]
    user = {"kind": "llm", "base_url": server.base_url, "user_models": models}
    town = {"town": {"split": "train", "num": 10}}
    recipe.write_text(
        json.dumps({"tiny_model": True, "environments": {"town": 1}, "train_tasks": town, "user": user}),
        encoding="utf-8",
    )
    report = check(server, tmp_path / "report.json", "--config", str(recipe), "--max_examples", "1")
    assert report["models"] == ["truthful", "gullible"]
    report = check(
        server, tmp_path / "other.json", "--config", str(recipe), "--model", "gullible", "--max_examples", "1"
    )
    assert report["models"] == ["gullible"]


def test_cases_without_an_answer_are_counted_and_not_guessed(tmp_path: Path) -> None:
    chosen = [question for question in choose_questions(4) if question.preference == "joke"]
    bad = [question for question in chosen if not question.follows]

    def reply(request: Request) -> dict[str, Any]:
        is_bad = data_of(request).get("question") == bad[0].question
        return {"nonsense": 1} if is_bad else truthful(request)

    with ChatServer(reply) as server:
        report = check(server, tmp_path / "report.json", "--model", "m", "--max_examples", "4")
    joke = report["verdicts"]["m"]["preferences"]["joke"]
    assert joke["num_unanswered"] == report["num_unanswered"] == 1
    assert joke["model"]["n"] == joke["num_questions"] - 1 == 3


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """The one sentence with which the command ends."""
    assert cli.main(["users", "check", *arguments]) == status
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("ppp users check: ")
    return shown


def test_bad_input_ends_with_one_sentence(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    good = ("--model", "truthful", "--base_url", server.base_url)
    assert "model: missing" in refused(capsys, "--base_url", server.base_url)
    assert "OPENAI_API_KEY" in refused(capsys, "--model", "gpt-5-nano")
    assert "user.max_concurency" in refused(capsys, *good, "--max_concurency", "3")
    assert "max_examples: 0" in refused(capsys, *good, "--max_examples", "0")
    assert "understood" in refused(capsys, *good, "--cache")
    assert "compare: '[1]'" in refused(capsys, *good, "--compare", "[1]")
    assert "output" in refused(capsys, *good, "--output", str(tmp_path / "none" / "report.json"))
    assert "output" in refused(capsys, *good, "--output", str(tmp_path))
    assert "unknown-model" in refused(capsys, *good, "--compare", "unknown-model")
    assert "nothing listens" in refused(capsys, "--model", "truthful", "--base_url", "http://127.0.0.1:9/v1")
    assert "cache_path" in refused(capsys, *good, "--cache", "replay", "--cache_path", str(tmp_path / "none.sqlite"))
    recipe = tmp_path / "scripted.yaml"
    town = {"town": {"split": "train", "num": 10}}
    recipe.write_text(
        json.dumps({"tiny_model": True, "environments": {"town": 1}, "train_tasks": town}), encoding="utf-8"
    )
    assert "'scripted'" in refused(capsys, "--config", str(recipe))


def test_a_spent_budget_and_a_useless_model_end_with_status_1(
    server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    good = ("--model", "truthful", "--base_url", server.base_url)
    assert "budget is used up" in refused(capsys, *good, "--max_calls", "5", status=1)
    with ChatServer(lambda request: "OK") as useless:
        arguments = ("--model", "m", "--base_url", useless.base_url, "--max_examples", "1")
        assert "not one answer" in refused(capsys, *arguments, status=1)
