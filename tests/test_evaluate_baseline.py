"""What is promised about two agents in one evaluation, about summaries of sessions that were played before, and about
what stands beside the scores.
"""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest

from ppp import evaluate as evaluation
from ppp.evaluation import agents
from ppp.evaluation.folder import MANIFEST_FILE, RESULTS_FILE, SUMMARY_FILE
from ppp.rewards import METRIC_VERSION
from ppp.tiny_model import save_tiny_model
from ppp.token_log import TOKENS_FILE

TOWN = ("--environment", "town", "--sessions_per_preference", "2")
SHORT = ("--limits.max_turns", "2", "--limits.max_tokens_per_turn", "8", "--max_completion_length", "256", "--use_cpu")


def run(folder: Path, *options: str) -> int:
    return evaluation.main(["--output_dir", str(folder), *options])


def read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_baseline_plays_the_same_sessions_and_the_difference_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert run(tmp_path, *TOWN, "--agent", "always_ask", "--baseline", "never_ask") == 0
    ours, theirs = (read_lines(folder / RESULTS_FILE) for folder in (tmp_path, tmp_path / "baseline"))
    names = [{(r["row"], r["task_id"], r["prompt"]) for r in records} for records in (ours, theirs)]
    assert names[0] == names[1] and len(names[0]) == 62
    summary, other = read_json(tmp_path / SUMMARY_FILE), read_json(tmp_path / "baseline" / SUMMARY_FILE)
    assert "differences" not in other
    vague = summary["differences"]["groups"]["vague"]
    gain = summary["vague"]["productivity"] - other["vague"]["productivity"]
    assert vague["difference"]["productivity"] == pytest.approx(gain, abs=0.02)
    assert gain > 50
    assert "gain over baseline" in capsys.readouterr().out
    assert sum("too narrow" in record.getMessage() for record in caplog.records) == 1
    agents_of = [read_json(folder / MANIFEST_FILE)["agent"] for folder in (tmp_path, tmp_path / "baseline")]
    assert agents_of == [{"kind": "policy", "name": "always_ask"}, {"kind": "policy", "name": "never_ask"}]


def test_two_models_are_never_in_memory_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seed in (("trained", 0), ("base", 1)):
        save_tiny_model(tmp_path / name, seed=seed, max_length=4352)
    alive: list[weakref.ref[Any]] = []
    build = agents.build_model

    def counted(*arguments: Any, **options: Any) -> Any:
        assert not any(reference() is not None for reference in alive), "the model before is still there"
        model = build(*arguments, **options)
        alive.append(weakref.ref(model))
        return model

    monkeypatch.setattr(agents, "build_model", counted)
    town = ("--environment", "town", "--num_sessions", "2", "--sessions_per_unseen_preference", "0")
    models = ("--agent", str(tmp_path / "trained"), "--baseline", str(tmp_path / "base"))
    assert run(tmp_path / "out", *town, *models, *SHORT) == 0
    assert len(alive) == 2
    weights = [
        read_json(folder / MANIFEST_FILE)["agent"]["weights"]
        for folder in (tmp_path / "out", tmp_path / "out/baseline")
    ]
    assert weights[0] != weights[1]
    rows = {line["row"] for line in read_lines(tmp_path / "out" / TOKENS_FILE)}
    assert rows == {record["row"] for record in read_lines(tmp_path / "out" / RESULTS_FILE)}


def test_a_model_that_was_trained_on_is_another_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    town = ("--environment", "town", "--num_sessions", "1", "--sessions_per_unseen_preference", "0")
    save_tiny_model(tmp_path / "model", seed=0, max_length=4352)
    assert run(tmp_path / "out", *town, "--agent", str(tmp_path / "model"), *SHORT) == 0
    save_tiny_model(tmp_path / "model", seed=1, max_length=4352)
    assert run(tmp_path / "out", *town, "--agent", str(tmp_path / "model"), *SHORT) == 2
    assert "agent.weights" in capsys.readouterr().err


def test_a_model_that_does_not_exist_is_found_out_before_anything_is_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "out", *TOWN, "--agent", "always_ask", "--baseline", str(tmp_path / "empty")) == 2
    assert "model_name_or_path" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prompts", ["vague", "precise"])
def test_without_interaction_nobody_is_asked(prompts: str, tmp_path: Path) -> None:
    options = ("--interaction", "false", "--preferences", "detail_question", "--prompts", prompts)
    assert run(tmp_path, *TOWN, "--agent", "never_ask", *options) == 0
    manifest, summary = read_json(tmp_path / MANIFEST_FILE), read_json(tmp_path / SUMMARY_FILE)
    assert (manifest["user"], manifest["interaction"], manifest["prompts"]) == (None, False, prompts)
    assert manifest["preferences"] == ["detail_question"]
    assert ("vague" in summary, "precise" in summary) == (prompts == "vague", prompts == "precise")


def test_records_say_which_slice_they_are_of_and_what_the_user_knew(tmp_path: Path) -> None:
    assert run(tmp_path, *TOWN, "--agent", "never_ask") == 0
    for record in read_lines(tmp_path / RESULTS_FILE):
        assert record["slice"].startswith("precise" if record["is_precise"] else "vague")
        assert (record["precise_prompt"] is None) == record["is_precise"]
    assert not (tmp_path / TOKENS_FILE).exists(), "rules have no tokens"


# --- sessions that were played before ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("played")
    assert run(folder, *TOWN, "--agent", "always_ask", "--baseline", "never_ask") == 0
    return folder


def test_results_give_the_same_summary_again(played: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(played, tmp_path / "copy")
    (tmp_path / "copy" / SUMMARY_FILE).unlink()
    before = read_json(played / SUMMARY_FILE)
    assert evaluation.main(["--results", str(tmp_path / "copy")]) == 0
    again = read_json(tmp_path / "copy" / SUMMARY_FILE)
    del before["wall_s"]
    assert again == before
    assert evaluation.main(["--results", str(played / RESULTS_FILE), "--output_dir", str(tmp_path / "file")]) == 0
    assert read_json(tmp_path / "file" / SUMMARY_FILE)["vague"] == before["vague"]


def test_a_file_without_a_manifest_can_be_summed_up(played: Path, tmp_path: Path) -> None:
    lines = (played / RESULTS_FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / "some.jsonl").write_bytes(b"".join(reversed(lines)))
    assert evaluation.main(["--results", str(tmp_path / "some.jsonl")]) == 0
    summary = read_json(tmp_path / SUMMARY_FILE)
    assert summary["vague"] == read_json(played / SUMMARY_FILE)["vague"], "the order of lines does not matter"
    assert summary["evaluation"] is None


def test_damaged_lines_are_told_by_number_and_left_out(
    played: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (played / RESULTS_FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / RESULTS_FILE).write_bytes(b"".join([lines[0], b"{\n", *lines[2:-1], lines[-1][:30]]))
    assert evaluation.main(["--results", str(tmp_path)]) == 0
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert ["line 2:" in told[0], f"line {len(lines)}:" in told[1]] == [True, True]
    groups = read_json(tmp_path / SUMMARY_FILE)
    assert groups["vague"]["num_sessions"] + groups["precise"]["num_sessions"] == 60


def test_sessions_that_stand_twice_in_a_file_count_once_and_those_that_are_missing_are_told(
    played: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (played / RESULTS_FILE).read_bytes().splitlines(keepends=True)
    for name, chosen in (("twice", [*lines, *lines[:20]]), ("part", lines[:20])):
        shutil.copytree(played, tmp_path / name)
        (tmp_path / name / RESULTS_FILE).write_bytes(b"".join(chosen))
        assert evaluation.main(["--results", str(tmp_path / name)]) == 0
    again, before = read_json(tmp_path / "twice" / SUMMARY_FILE), read_json(played / SUMMARY_FILE)
    assert again["vague"] == before["vague"] and again["precise"] == before["precise"]
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("more than once, and count once: 20" in text for text in told)
    assert any(f"it holds 20 of the {len(lines)} sessions" in text for text in told)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "it holds no session"),
        (json.dumps({"metric_version": METRIC_VERSION + 1}) + "\n", "metric_version"),
    ],
)
def test_results_that_cannot_be_used_are_refused_in_a_sentence(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / RESULTS_FILE).write_text(content)
    assert evaluation.main(["--results", str(tmp_path)]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("ppp evaluate: ") and message in error and "\n" not in error
    assert not (tmp_path / SUMMARY_FILE).exists()
