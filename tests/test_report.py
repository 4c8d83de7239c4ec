"""What is promised about `ppp report`: any runs in, nothing invented, nothing lost, and every mistake in a sentence."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib import request

import pytest
from matplotlib import image
from report_runs import hand_made, session, training_metrics, write_evaluation, write_quickstart, write_training

from ppp import evaluate, report
from ppp.evaluation.folder import MANIFEST_FILE, RESULTS_FILE
from ppp.preferences import PREFERENCES
from ppp.reporting.build_report import build_report
from ppp.reporting.page import write_page
from ppp.reporting.runs import find_runs, read_metrics
from ppp.rewards import METRIC_VERSION
from ppp.types import RecipeError

RECIPE = (
    *("--tiny_model", "true"),
    *("--environments", "{town: 1}"),
    *("--train_tasks", "{town: {split: train, num: 8}}"),
    *("--eval_tasks", "{town: {split: test, num: 40}}"),
)


# --- from sessions to files -------------------------------------------------------------------------------------------


def test_rule_made_agents_are_evaluated_and_reported(tmp_path: Path) -> None:
    for agent in ("always_ask", "never_ask"):
        options = ["--agent", agent, "--num_sessions", "24", "--sessions_per_unseen_preference", "2"]
        assert evaluate.main(["--output_dir", str(tmp_path / "runs" / agent), *RECIPE, *options]) == 0
    page = tmp_path / "report.html"
    assert report.main([str(tmp_path / "runs"), "--output", str(page)]) == 0
    assert "always_ask" in page.read_text(encoding="utf-8")
    with (tmp_path / "report_tables" / "table_2.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    lines = (tmp_path / "runs" / "never_ask" / RESULTS_FILE).read_text(encoding="utf-8").splitlines()
    vague = [record for record in map(json.loads, lines) if not record["is_precise"]]
    by_user: dict[str, list[float]] = {}
    for record in vague:
        by_user.setdefault(record["preference"], []).append(record["session"]["productivity"])
    expected = 100 * sum(sum(solved) / len(solved) for solved in by_user.values()) / len(by_user)
    assert float(rows["never_ask"]["town productivity"]) == pytest.approx(expected, abs=0.051)
    assert rows["never_ask"]["town personalization"] == "", "nothing was asked"
    assert float(rows["always_ask"]["town productivity"]) > 80
    assert int(rows["never_ask"]["sessions"]) == len(vague) == 24 + 16


def test_every_format_that_is_asked_for_and_no_other(tmp_path: Path) -> None:
    folder = write_quickstart(tmp_path / "q")
    page = tmp_path / "r.html"
    assert report.main([str(folder), "--output", str(page), "--formats", "tex,png"]) == 0
    assert not page.exists()
    assert {path.suffix for path in (tmp_path / "r_tables").iterdir()} == {".tex"}
    assert {path.suffix for path in (tmp_path / "r_figures").iterdir()} == {".png"}
    assert report.main([str(folder), "--output", str(page)]) == 0
    assert page.is_file()
    assert {path.suffix for path in (tmp_path / "r_tables").iterdir()} == {".tex", ".md", ".csv"}


def test_without_an_output_tables_and_curves_stay_with_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_quickstart(tmp_path / "q")
    assert report.main([str(folder)]) == 0
    assert image.imread(folder / report.CURVES_FILE).shape[0] > 300
    text = (folder / report.TABLE_FILE).read_text(encoding="utf-8")
    for title in ("Table 2", "Before and after", "Scores by preference", "Training of PPP"):
        assert title in text
    out = capsys.readouterr().out
    assert "PPP w/o R_proact" in out and str(folder / report.TABLE_FILE) in out


def test_the_report_tells_of_the_evaluation_after_training(tmp_path: Path) -> None:
    built = build_report([str(write_quickstart(tmp_path / "q"))], 100)
    assert built.report.title == "PPP, compared with before"
    first = built.report.headlines[0]
    assert (first.label, first.value, first.before) == ("Productivity, vague prompts", 100.0, 0.0)
    assert built.report.num_sessions == 5 * 4


# --- which runs -------------------------------------------------------------------------------------------------------


def test_runs_are_found_at_any_depth_each_once(tmp_path: Path) -> None:
    folder = write_quickstart(tmp_path / "q")
    runs = find_runs([str(folder / "after"), str(tmp_path)])
    assert [run.folder.relative_to(folder).as_posix() for run in runs.evaluations] == [
        "policies/always_ask",
        "before",
        "after",
        "ablation/without_r_proact/after",
        "ablation/r_prod_alone/after",
    ]
    assert len(runs.trainings) == 3


def test_results_of_different_rules_are_refused_with_both_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = write_evaluation(tmp_path / "ours", hand_made())
    other = METRIC_VERSION + 1
    theirs = write_evaluation(tmp_path / "theirs", [{**record, "metric_version": other} for record in hand_made()])
    assert report.main([str(ours), str(theirs)]) == 2
    err = capsys.readouterr().err
    assert str(ours) in err and str(theirs) in err and f"{other}" in err
    assert err.count("\n") == 1


def test_a_training_of_different_rules_is_refused_too(tmp_path: Path) -> None:
    ours = write_evaluation(tmp_path / "ours", hand_made())
    old = [{**session(1, "capital", 1.0), "metric_version": METRIC_VERSION + 1}]
    theirs = write_training(tmp_path / "train", training_metrics(2), records=old)
    with pytest.raises(RecipeError, match=f"(?s){ours.name}.*{theirs.name}"):
        find_runs([str(ours), str(theirs)])


def test_damaged_lines_are_told_with_file_and_number_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_evaluation(tmp_path / "agent", hand_made())
    path = folder / RESULTS_FILE
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[1] = '{"task_id": 5}'
    path.write_text("\n".join([*lines, lines[0][:50]]), encoding="utf-8")
    page = tmp_path / "r.html"
    assert report.main([str(folder), "--output", str(page)]) == 0
    err = capsys.readouterr().err
    assert f"{path}, line 2: " in err and f"{path}, line 9: cut off" in err
    built = build_report([str(folder)], 100)
    assert built.report.num_sessions == 7
    text = page.read_text(encoding="utf-8")
    assert "line 2: " in text and "line 9: cut off" in text


def test_a_file_full_of_damage_is_told_of_in_a_few_sentences(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "agent", [])
    (folder / RESULTS_FILE).write_text("no JSON\n" * 1000, encoding="utf-8")
    problems = build_report([str(folder)], 100).report.problems
    assert len(problems) < 10 and any("995 further damaged lines" in problem for problem in problems)


def test_damaged_metrics_and_manifests_are_told(tmp_path: Path) -> None:
    train = write_training(tmp_path / "train", training_metrics(3))
    with (train / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('[1]\n{"step": 4, "productivity"')
    folder = write_evaluation(tmp_path / "agent", hand_made())
    (folder / MANIFEST_FILE).write_text("{", encoding="utf-8")
    problems = "\n".join(build_report([str(tmp_path)], 100).report.problems)
    assert "metrics.jsonl, line 4: " in problems and "metrics.jsonl, line 5: cut off" in problems
    assert f"{MANIFEST_FILE}: not JSON" in problems


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        ({"agent": "x"}, "agent is not a JSON object"),
        ({"user": "x"}, "user is not a JSON object"),
        ({"user": {"kind": "llm", "user_models": 5}}, "user.user_models is not a list"),
        ({"rewards": [1]}, "rewards is not a JSON object"),
        ({"rewards": {"weights": "x"}}, "rewards.weights is not a JSON object"),
        ({"sessions": 5}, "sessions is not a JSON object"),
        ({"sessions": {"total": "many"}}, "sessions.total is not a whole number"),
        ({"sessions": {"total": None}, "rewards": {"weights": {"proactivity": "<b>"}}}, None),
    ],
)
def test_a_manifest_with_a_strange_field_costs_the_field_alone(
    tmp_path: Path, manifest: dict[str, Any], told: str | None
) -> None:
    write_evaluation(tmp_path / "run", hand_made(), **manifest)
    built = build_report([str(tmp_path)], 100)
    expected = [] if told is None else [f"{tmp_path / 'run' / MANIFEST_FILE}: {told} and is left out."]
    assert [problem for problem in built.report.problems if MANIFEST_FILE in problem] == expected
    assert {weight for shown in built.report.sessions for weight in shown.weights.values()} <= {1.0}


def test_an_empty_run_says_so(tmp_path: Path) -> None:
    write_evaluation(tmp_path / "evaluated", [])
    write_training(tmp_path / "train", [])
    (tmp_path / "nothing").mkdir()
    page = tmp_path / "r.html"
    names = [str(tmp_path / name) for name in ("evaluated", "train", "nothing")]
    assert report.main([*names, "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "evaluated: the evaluation holds no session yet." in text
    assert "train: the training run holds no step yet." in text
    assert "nothing: holds no evaluation and no training run" in text


def test_few_tasks_are_said_to_make_narrow_intervals(tmp_path: Path) -> None:
    few = write_evaluation(tmp_path / "few", [session(n, "capital", 1.0) for n in range(29)])
    enough = write_evaluation(tmp_path / "enough", [session(n, "capital", 1.0) for n in range(30)])
    problems = build_report([str(few)], 0).report.problems
    assert any("few: " in text and "29" in text and "too narrow" in text for text in problems)
    assert not build_report([str(enough)], 0).report.problems


def test_an_evaluation_that_goes_on_says_how_far_it_is(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "agent", hand_made(), sessions={"total": 100})
    assert "agent: 8 of 100 sessions have been played so far." in build_report([str(folder)], 0).report.problems


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere"], "'nowhere' is not a folder"),
        (["name=nowhere"], "'nowhere' is not a folder"),
        (["x" * 300], "is not a folder"),
        (["."], "no run found"),
        (["run", "--formats", "md,docx"], "'docx' is not allowed"),
        (["run", "--max_sessions", "-1"], "max_sessions"),
        (["run", "--output", "no/such/folder/x.html"], "must be a file in a folder that exists"),
        (["run", "--watch", "--port", "99999"], "must be a port"),
        (["run", "--output", "run/results.jsonl/x.html"], "must be a file in a folder that exists"),
        (["run", "--output", "."], "must be a file in a folder that exists"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    if arguments[0] == "run":
        write_evaluation(tmp_path / "run", hand_made())
    monkeypatch.chdir(tmp_path)
    assert report.main(arguments) == 2
    err = capsys.readouterr().err
    assert told in err and err.startswith("ppp report: ") and err.count("\n") == 1


def test_names_are_kept_and_hold_no_markup(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "run", hand_made())
    built = build_report([f"<b>mine</b>\u202e={folder}"], 100)
    assert built.report.title == "<b>mine</b>\\u202e"
    page = tmp_path / "r.html"
    assert report.main([f"<b>mine</b>\u202e={folder}", "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "<b>mine" not in text and "&lt;b&gt;mine" in text and "\u202e" not in text


# --- metrics and sessions ---------------------------------------------------------------------------------------------


def test_a_resumed_run_counts_each_step_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 1}\n{"step": 2, "a": 2}\n{"step": 2, "a": 3}\n{"step": 2, "b": 4}\n')
    assert read_metrics(path)[0] == [{"step": 1, "a": 1}, {"step": 2, "a": 3, "b": 4}]


# --- while a run goes on ----------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_is_served_on_this_machine(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "agent", hand_made()[:1])
    command = [sys.executable, "-m", "ppp.cli", "report", str(folder), "--watch"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            found = next(filter(None, (re.search(r"http://127\.0\.0\.1:\d+/", line) for line in process.stderr)))
            with request.urlopen(found[0], timeout=30) as answer:
                assert "agent" in answer.read().decode()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


def test_a_run_that_has_finished_nothing_yet_is_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    early = report.report_so_far([str(folder)], 10)
    assert early.headlines == [] and "follows the run" in early.problems[0]
    write_page(early, tmp_path / "early.html", watch=True)
    write_evaluation(folder, hand_made())
    assert len(report.report_so_far([str(folder)], 10).headlines) == 3


def test_a_preference_of_ones_own_stands_in_the_group_of_its_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "report_of_polite_users"
    (tmp_path / f"{name}.py").write_text(
        "from dataclasses import replace\n"
        "from ppp.preferences import PREFERENCES\n"
        'PREFERENCES["polite"] = replace(PREFERENCES["capital"], name="polite")\n',
        encoding="utf-8",
    )
    records = [{**session(1, "capital", 1.0), "preference": "polite", "task_id": "task-1/polite"}]
    folder = write_evaluation(tmp_path / "run", records)
    monkeypatch.setitem(PREFERENCES, "polite", PREFERENCES["capital"])  # taken out again after the test
    monkeypatch.delitem(PREFERENCES, "polite")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert report.main([str(folder)]) == 0
    assert "held-out" not in (folder / report.TABLE_FILE).read_text(encoding="utf-8")
    assert report.main([str(folder), "--imports", name]) == 0
    assert "held-out" in (folder / report.TABLE_FILE).read_text(encoding="utf-8")


def test_a_folder_that_takes_no_files_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_evaluation(tmp_path / "run", hand_made())
    (folder / report.TABLE_FILE).mkdir()  # no file can be written over it, not even by root
    assert report.main([str(folder)]) == 2
    assert "cannot be written" in capsys.readouterr().err
