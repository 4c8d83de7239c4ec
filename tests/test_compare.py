"""Two evaluations of the same sessions: what pairs, what is left out, what is told, and that texts stay texts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_records import made_record, write_records

from ppp.evaluation import compare_cli
from ppp.evaluation.compare import COMPARED, excludes_zero, most_changed, pair_up, paired_differences
from ppp.evaluation.compare_text import ROWS
from ppp.evaluation.intervals import Settings
from ppp.evaluation.metrics import METRICS, summarize_groups
from ppp.preferences import PREFERENCES

QUICK = Settings(num_resamples=200)
MANIFEST: dict[str, Any] = {
    "version": 1,
    "metric_version": 1,
    "agent": {"kind": "policy", "name": "never_ask"},
    "user": {"kind": "scripted", "max_concurrency": 4},
    "interaction": True,
    "seed": 42,
    "rewards": {"weights": {"productivity": 1.0}, "personalization": "paper", "reward_clip": [0.0, 1.0]},
    "sessions_digest": "a",
}


def sessions(turns: str, productivity: float, num: int = 6, **options: Any) -> list[dict[str, Any]]:
    return [made_record(turns, productivity, task=f"t{row}", row=row, **options) for row in range(num)]


def write_run(folder: Path, records: list[Any], **changes: Any) -> Path:
    write_records(folder / "results.jsonl", records)
    (folder / "evaluation.json").write_text(json.dumps({**MANIFEST, **changes}), encoding="utf-8")
    return folder


def run(*arguments: object) -> int:
    return compare_cli.main([str(argument) for argument in arguments])


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_sessions_pair_by_number_task_user_and_prompt() -> None:
    first = sessions("tf", 1.0, num=5)
    second = [
        made_record("lf", 1.0, task="t0", row=0),
        made_record("lf", 1.0, task="other", row=1),
        made_record("lf", 1.0, task="t2", row=2, preference="json"),
        made_record("lf", 1.0, task="t3", row=3, precise=True),
        made_record("lf", 1.0, task="t4", row=5),
        made_record("lf", 1.0, task="t6", row=6),
    ]
    found = pair_up(first, second)
    assert [pair.first["row"] for pair in found.pairs] == [0]
    assert found.num_unmatched == (4, 5)


def test_a_pair_of_which_one_failed_is_left_out_of_both_and_counted() -> None:
    first, second = sessions("tf", 1.0, num=4), sessions("lf", 0.0, num=4)
    first[1] = made_record("l", None, task="t1", row=1)
    second[2] = made_record("l", None, task="t2", row=2)
    found = paired_differences(first, second, settings=QUICK)
    assert (found["num_pairs"], found["num_failed"], found["num_unmatched"]) == (2, 2, [0, 0])
    assert found["groups"]["vague"]["num_pairs"] == 2


def test_of_a_session_played_twice_the_one_that_did_not_fail_counts() -> None:
    again = [made_record("", None), made_record("lf", 0.5), made_record("tf", 1.0)]
    (pair,) = pair_up(again, again[::-1]).pairs
    assert pair.first["session"]["productivity"] == 0.5 and pair.second["session"]["productivity"] == 1.0


def test_the_order_of_the_sessions_does_not_matter() -> None:
    first = [*sessions("tf", 1.0), *(made_record("lf", 0.0, task=f"t{row}", row=row) for row in range(6, 40))]
    second = [*sessions("lf", 0.0), *(made_record("mf", row % 2, task=f"t{row}", row=row) for row in range(6, 40))]
    assert paired_differences(first, second) == paired_differences(first[::-1], second[5:] + second[:5])


# --- differences -----------------------------------------------------------------------------------------------------


def test_every_metric_changes_by_what_the_two_summaries_differ() -> None:
    words = ("tf", "lf", "mLf", "tlhf")
    users = [*list(PREFERENCES) * 6, *["json"] * 20, *["no_ask"] * 30]  # unequal numbers, as in a run with failures
    first, second = (
        [
            made_record(
                words[(row * step) % 4],
                (row % step) / step,
                task=f"t{row // 3}",
                row=row,
                preference=preference,
                precise=row % 5 == 0,
            )
            for row, preference in enumerate(users)
        ]
        for step in (3, 7)
    )
    found = paired_differences(first, second, settings=QUICK)
    before, after = (summarize_groups(records, intervals=None) for records in (first, second))
    assert list(found["groups"]) == ["vague", "vague_seen", "vague_unseen", "vague_penalty", "precise"]
    for name, group in found["groups"].items():
        assert set(group["difference"]) == set(group["intervals"]) == set(METRICS)
        for metric in METRICS:
            kind, _, effort = metric.partition("/")
            sides = [side[name][kind][effort] if effort else side[name][kind] for side in (before, after)]
            assert (group["first"][metric], group["second"][metric]) == tuple(sides)
            assert group["difference"][metric] == pytest.approx(sides[1] - sides[0], abs=0.011)
            low, high = group["intervals"][metric]
            assert low <= group["difference"][metric] <= high


def test_personalization_is_each_agents_share_of_its_own_questions() -> None:
    """The first asks in 2 of 4 and follows in 1 of these; the second asks in all and follows in 3 of 4."""
    first = [
        made_record(turns, task=f"t{row}", row=row, preference="json")
        for row, turns in enumerate(("lf", "Lf", "tf", "tf"))
    ]
    second = [
        made_record(turns, task=f"t{row}", row=row, preference="json")
        for row, turns in enumerate(("lf", "Lf", "lf", "lf"))
    ]
    found = paired_differences(first, second, settings=QUICK)["groups"]["vague"]
    assert (found["first"]["personalization"], found["second"]["personalization"]) == (50.0, 75.0)
    assert found["difference"]["personalization"] == 25.0
    silent = paired_differences(first, sessions("tf", 1.0, num=4, preference="json"), settings=QUICK)["groups"]["vague"]
    assert silent["second"]["personalization"] is None
    assert silent["difference"]["personalization"] is None and silent["intervals"]["personalization"] is None


def test_the_variant_of_personalization_is_the_one_asked_for() -> None:
    first, second = sessions("lf", 1.0, preference="json"), sessions("lf", 1.0, preference="json")
    second[0] = made_record("tf", 1.0, task="t0", row=0, preference="answer_more")
    first[0] = made_record("lllf", 1.0, task="t0", row=0, preference="answer_more")
    assert paired_differences(first, second)["groups"]["vague_unseen"]["difference"]["personalization"] == 0.0
    seen = {
        variant: paired_differences(first, second, personalization=variant)["groups"]["vague_seen"]["second"]
        for variant in ("paper", "released")
    }
    assert seen["paper"]["personalization"] is None and seen["released"]["personalization"] == 0.0


def test_sessions_that_got_better_and_worse_are_counted() -> None:
    first = [made_record("lf", value, task=f"t{row}", row=row) for row, value in enumerate((0.0, 0.5, 1.0, 1.0))]
    second = [made_record("lf", value, task=f"t{row}", row=row) for row, value in enumerate((0.5, 0.5, 0.0, 1.0))]
    changes = paired_differences(first, second, settings=QUICK)["groups"]["vague"]["sessions"]
    assert changes["productivity"] == {"better": 1, "worse": 1, "equal": 2}
    # 0.05 for a question of low effort and 0.05 for the user: 0.1 -> 0.6, 0.6, 1 (clipped) -> 0.1, 1
    assert changes["reward"] == {"better": 1, "worse": 1, "equal": 2}


def test_a_gain_in_every_task_excludes_zero_and_noise_does_not() -> None:
    num = 60
    first = [made_record("lf", (row % 10) / 20, task=f"t{row}", row=row) for row in range(num)]
    better = [made_record("lf", (row % 10) / 20 + 0.1, task=f"t{row}", row=row) for row in range(num)]
    moved = [made_record("lf", ((row + row % 2) % 10) / 20, task=f"t{row}", row=row) for row in range(num)]
    gain, noise = (paired_differences(first, other)["groups"]["vague"]["intervals"] for other in (better, moved))
    assert excludes_zero(gain["productivity"]) and gain["productivity"][0] > 0
    assert not excludes_zero(noise["productivity"]) and not excludes_zero(None)
    assert not excludes_zero([0.0, 1.0]) and excludes_zero([-2.0, -0.1])


def test_sessions_that_changed_most_come_first_and_those_that_did_not_change_not_at_all() -> None:
    first = [made_record("tf", value, task=f"t{row}", row=row) for row, value in enumerate((0.0, 0.5, 1.0, 0.25, 0.5))]
    second = [
        made_record("tf", value, task=f"t{row}", row=row) for row, value in enumerate((0.75, 0.5, 0.0, 0.0, 0.75))
    ]
    pairs = pair_up(first, second).pairs
    # no_preference in silence earns 0.05. Rewards change by 0.75, 0, -0.95 (from 1, clipped, to 0.05), -0.25 and 0.25.
    assert [pair.first["row"] for pair in most_changed(pairs, 10)] == [2, 0, 3, 4]
    assert [pair.first["row"] for pair in most_changed(pairs, 2)] == [2, 0]
    assert most_changed(pairs, 0) == []
    assert [round(pairs[2].change(name), 2) for name in COMPARED] == [-0.95, -1.0]


def test_of_equal_rewards_the_change_of_productivity_decides() -> None:
    first = [made_record("hf", 0.0, task=f"t{row}", row=row) for row in range(2)]
    second = [made_record("hf", value, task=f"t{row}", row=row) for row, value in enumerate((0.2, 0.4))]
    pairs = pair_up(first, second).pairs
    assert [pair.second["score"]["reward"] for pair in pairs] == [0.0, 0.0], "clipped at 0"
    assert [pair.first["row"] for pair in most_changed(pairs, 2)] == [1, 0]


# --- the command -----------------------------------------------------------------------------------------------------


def test_every_metric_has_a_row() -> None:
    assert set(ROWS) == set(METRICS)


def test_the_table_marks_what_changed_and_the_sessions_show_what_was_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write_run(tmp_path / "before", sessions("tf", 0.0, num=40))
    after = write_run(
        tmp_path / "after", sessions("Lf", 1.0, num=40), agent={"kind": "checkpoint", "name": "runs/town"}
    )
    assert run(before, after, "--num_changed", "2") == 0
    shown = capsys.readouterr().out
    assert f"A: {before} (never_ask)\nB: {after} (runs/town)" in shown and "Warning" not in shown
    assert "vague: 40 pairs of sessions, 40 tasks" in shown and "precise: no pair of sessions." in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("productivity, %")]
    assert row.split()[2:5] == ["0.0", "100.0", "+100.0"] and row.endswith("*")
    (row,) = [line for line in shown.splitlines() if line.startswith("unreadable turns, %")]
    assert row.split()[3:6] == ["0.0", "0.0", "+0.0"] and not row.endswith("*")
    assert "productivity better in 40, worse in 0, equal in 0" in shown
    assert "1. t0/no_preference (town, vague, no_preference): reward 0.05 -> 1.00, productivity 0.00 -> 1.00" in shown
    assert "   A: finished after 2 turns, high effort, preference kept, answer 'f1'" in shown
    assert "   B: finished after 2 turns, low effort, preference not kept, answer 'f1'" in shown
    assert "      asked (low, not as wished): Which module?" in shown
    assert "2. t1/" in shown and "3. t2/" not in shown


def test_groups_are_those_asked_for_and_so_are_the_sessions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = ("json", "no_ask")
    first, second = (
        [made_record("tf", value, task=f"t{row}", row=row, preference=users[row % 2]) for row in range(40)]
        for value in (0.0, 1.0)
    )
    folders = write_run(tmp_path / "a", first), write_run(tmp_path / "b", second)
    assert run(*folders, "--group", "vague_unseen", "--num_changed", "100") == 0
    shown = capsys.readouterr().out
    assert "vague, unseen: 20 pairs" in shown and "vague: " not in shown
    assert "20. " in shown and "21. " not in shown and "/no_ask" not in shown
    assert run(*folders, "--group", "all") == 0
    assert capsys.readouterr().out.count("pairs of sessions,") == 4


def test_everything_that_differs_besides_the_agent_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [*sessions("tf", 1.0, num=6), "{torn\n"]
    second = sessions("lf", 1.0, num=5)
    second[1] = made_record("", None, task="t1", row=1)
    second[2]["prompt"] = "Another prompt."
    before = write_run(tmp_path / "before", first)
    after = write_run(
        tmp_path / "after",
        second,
        user={"kind": "llm", "model": "m\x1b[31m", "max_concurrency": 64},
        seed=43,
        sessions_digest="b",
        agent={"kind": "endpoint", "name": "x", "url": "y"},
        rewards={**MANIFEST["rewards"], "weights": {"productivity": 2.0}},
    )
    assert run(before, after) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Warning: ")]
    assert warnings[0].startswith("Warning: A, line 7: not JSON")
    assert warnings[1:] == [
        "Warning: A: sessions without a pair, which are left out: 1.",
        "Warning: pairs of which a session failed, which are left out: 1.",
        "Warning: pairs with different prompts, so that tasks of one name differ: 1.",
        'Warning: user.kind is "scripted" in A and "llm" in B.',
        "Warning: seed is 42 in A and 43 in B.",
        "Warning: rewards.weights.productivity is 1.0 in A and 2.0 in B.",
        'Warning: user.model is not set in A and "m\\u001b[31m" in B.',
        "Warning: few tasks (4): intervals are too narrow below 30 tasks, and a single task has none.",
    ]


def test_a_run_without_its_settings_or_with_broken_ones_is_compared_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = (write_run(tmp_path / name, sessions("tf", 1.0, num=40)) for name in ("before", "after"))
    (before / "evaluation.json").unlink()
    (after / "evaluation.json").write_text("[1]")
    assert run(before, after) == 0
    shown = capsys.readouterr().out
    assert f"A: {before} (unknown)" in shown
    assert "Warning: A: it says nothing of its users and settings" in shown
    assert "Warning: B: " in shown and "evaluation.json cannot be read" in shown
    assert "No session changed" in shown


def test_many_damaged_lines_and_many_settings_are_told_in_a_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = write_run(tmp_path / "a", [*sessions("tf", 1.0), *["{}\n"] * 30], limits={str(n): n for n in range(30)})
    assert run(before, write_run(tmp_path / "b", sessions("tf", 1.0))) == 0
    shown = capsys.readouterr().out
    assert shown.count("metric_version is missing") == 8 and "A: 22 further damaged lines, skipped" in shown
    assert shown.count("not set in B") == 8 and "22 further settings differ" in shown


HOSTILE = (
    "\x1b]0;owned\x07\x1b[2J\u202eevil\u200b\n1. fake (line)\r" + "<script>alert(1)</script> | `x` " + "long " * 300_000
)


@pytest.mark.parametrize("markdown", [False, True])
def test_texts_of_models_stay_one_plain_line_of_limited_length(
    markdown: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [sessions("tf", 0.0, num=2), sessions("lf", 1.0, num=2)]
    for record in records[1]:
        record["turns"][0]["question"] = record["final_answer"] = record["prompt"] = HOSTILE
    records[0][0]["prompt"] = HOSTILE
    for name, side in zip("ab", records, strict=True):
        write_run(tmp_path / name, side, user={"kind": HOSTILE + name}, agent={"kind": "endpoint", "name": HOSTILE})
    assert run(tmp_path / "a", tmp_path / "b", "--output", tmp_path / "out.md") == 0
    shown = capsys.readouterr().out if not markdown else (tmp_path / "out.md").read_text(encoding="utf-8")
    assert not set(shown) & set("\x1b\x07\u202e\u200b\r")
    assert max(map(len, shown.splitlines())) < 700
    assert not [line for line in shown.splitlines() if line.startswith("1. fake")]
    if markdown:  # what a model wrote stands in blocks of code only
        assert all(line.startswith("    ") for line in shown.splitlines() if "script" in line or "`x`" in line)


def test_json_holds_all_groups_and_the_sessions_with_their_questions(tmp_path: Path) -> None:
    before = write_run(tmp_path / "a", sessions("tf", 0.0, num=40, preference="json"))
    after = write_run(tmp_path / "b", sessions("mLf", 1.0, num=40, preference="json"))
    assert run(before, after, "--output", tmp_path / "out.json", "--num_changed", "3") == 0
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert list(found["groups"]) == ["vague", "vague_unseen", "vague_penalty"]
    assert found["groups"]["vague"]["difference"]["productivity"] == 100.0
    assert found["num_pairs"] == 40 and found["warnings"] == []
    assert len(found["most_changed"]) == 3
    session = found["most_changed"][0]
    assert session["first"]["questions"] == []
    assert session["second"]["questions"] == [
        {"text": "Which module?", "effort": "medium", "follows_preference": True},
        {"text": "Which module?", "effort": "low", "follows_preference": False},
    ]


def test_markdown_holds_the_tables_asked_for(tmp_path: Path) -> None:
    before, after = (write_run(tmp_path / name, sessions("tf", value, num=40)) for name, value in (("a", 0), ("b", 1)))
    assert run(before, after, "--output", tmp_path / "out.md") == 0
    text = (tmp_path / "out.md").read_text(encoding="utf-8")
    assert "**vague: 40 pairs of sessions, 40 tasks**" in text and "| productivity, %" in text
    assert "    1. t0/no_preference (town" in text


BAD_CALLS: list[tuple[str, list[str]]] = [
    ("missing' is not allowed; name the folder of an evaluation", ["a", "missing"]),
    ("holds no session$", ["empty", "a"]),
    ("holds no session, only 1 damaged lines", ["a", "damaged"]),
    ("metric_version 2 is not allowed, only 1", ["a", "newer"]),
    ("share no session; nothing is compared", ["a", "apart"]),
    (r"share no session that did not fail \(6 did\); nothing is compared", ["a", "failed"]),
    ("output: .* must end in .md or .json", ["a", "b", "--output", "x.txt"]),
    ("output: .* cannot be written", ["a", "b", "--output", "no/such/folder.md"]),
    ("num_changed: -1 is not allowed", ["a", "b", "--num_changed", "-1"]),
    ("--num_changed: invalid int value", ["a", "b", "--num_changed", "many"]),
    ("--group: invalid choice: 'mine'", ["a", "b", "--group", "mine"]),
    ("required: RUN_B", ["a"]),
    ("unrecognized arguments: --speed", ["a", "b", "--speed", "1"]),
]


@pytest.mark.parametrize(("message", "arguments"), BAD_CALLS)
def test_a_mistake_at_the_command_line_is_told_in_one_sentence(
    message: str,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", sessions("tf", 1.0))
    write_run(tmp_path / "b", sessions("lf", 1.0))
    write_run(tmp_path / "empty", [])
    write_run(tmp_path / "damaged", ["{}\n"])
    write_run(tmp_path / "newer", [{**record, "metric_version": 2} for record in sessions("lf", 1.0)])
    write_run(tmp_path / "apart", sessions("lf", 1.0, precise=True))
    write_run(tmp_path / "failed", [made_record("", None, task=f"t{row}", row=row) for row in range(6)])
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("ppp compare: ") and err.count("\n") == 1

    assert re.search(message, err.strip()), err
