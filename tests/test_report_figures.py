"""What is promised about figures: they show what is there, fit light and dark pages, and hold names as text."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib import colors, image
from report_runs import LOW, hand_made, session, training_metrics, write_evaluation, write_quickstart, write_training

from ppp.reporting.figures import FIGURES, PICTURES, Drawn, make_figures, write_overview
from ppp.reporting.plots import COLOURS, EFFORT_COLOURS, INK, look, smooth
from ppp.reporting.run_types import series
from ppp.reporting.runs import find_runs

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawn]:
    """All figures of a folder that has something for each of them."""
    folder = write_quickstart(tmp_path_factory.mktemp("runs") / "q")
    agent = {"kind": "checkpoint", "name": "models/agent"}
    both = [session(n, "detail_question", n % 2, [(LOW, True)] * (n % 3), precise=n > 19) for n in range(40)]
    write_evaluation(folder / "talking", both, agent=agent)
    write_evaluation(folder / "mute", both, agent=agent, interaction=False, user=None)
    drawn, left_out = make_figures(find_runs([str(folder)]), PICTURES)
    assert left_out == {}
    return {figure.figure.name: figure for figure in drawn}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_fits_both_themes(everything: dict[str, Drawn], name: str) -> None:
    svg = everything[name].figure.svg
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert "currentColor" in svg and INK not in svg, "ink comes from the page"
    assert "fill: #ffffff" not in svg and "fill: white" not in svg, "no background"
    assert root.findall(f".//{SVG}text"), "text that can be searched and read aloud"
    assert "<script" not in svg and "<metadata" not in svg and "http://matplotlib" not in svg


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_picture_too(everything: dict[str, Drawn], name: str) -> None:
    files = everything[name].files
    picture = image.imread(io.BytesIO(files["png"]))
    assert picture.shape[0] > 200 and picture.shape[1] > 500
    assert len({tuple(pixel) for pixel in picture[::5, ::5, :3].reshape(-1, 3)}) > 10, "an empty picture"
    assert files["pdf"].startswith(b"%PDF") and files["svg"].startswith(b"<svg")


def luminance(colour: str) -> float:
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colors.to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("colour", [*COLOURS, *EFFORT_COLOURS.values()])
@pytest.mark.parametrize("page", ["#ffffff", "#1c1d20"])
def test_colours_are_seen_on_light_and_dark_pages(colour: str, page: str) -> None:
    dark, light = sorted((luminance(colour), luminance(page)))
    assert (light + 0.05) / (dark + 0.05) >= 3


@pytest.mark.parametrize("label", ["$x^2$ \\frac", "_hidden", "<script>alert(1)</script>", "a & b", "x" * 300])
def test_names_of_runs_are_text(tmp_path: Path, label: str) -> None:
    train = write_training(tmp_path / "train", training_metrics(20))
    drawn, _ = make_figures(find_runs([f"{label}={train}"]))
    root = ElementTree.fromstring(drawn[0].figure.svg)
    texts = ["".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")]
    assert label in texts or f"{label[:19]}…{label[-20:]}" in texts
    assert not root.findall(f".//{SVG}script")


def test_what_is_compared_has_colours_of_its_own_however_many_runs_there_are(tmp_path: Path) -> None:
    folder = write_quickstart(tmp_path / "q")
    for number in range(10):
        write_evaluation(folder / "policies" / f"agent_{number}", hand_made())
    runs = find_runs([str(folder)])
    first = ["PPP", "PPP w/o R_proact", "PPP w/o both", "before"]
    assert len({look(runs.looks[name])[0] for name in first}) == len(first)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    drawn, left_out = make_figures(find_runs([str(write_evaluation(tmp_path / "agent", hand_made()))]))
    assert [figure.figure.name for figure in drawn] == ["precise_and_vague", "question_positions"]
    assert "no training run" in left_out["learning_curves"]
    assert "interaction: false" in left_out["three_settings"]
    assert set(left_out) | {figure.figure.name for figure in drawn} == set(FIGURES)


def test_a_training_without_evaluations_has_no_curves_of_held_out_preferences(tmp_path: Path) -> None:
    train = write_training(tmp_path / "train", training_metrics(9))
    drawn, left_out = make_figures(find_runs([str(train)]))
    assert [figure.figure.name for figure in drawn] == ["learning_curves", "ask_ratios", "efforts"]
    assert "eval_strategy" in left_out["unseen_preferences"]


def test_the_same_runs_give_the_same_figures(tmp_path: Path) -> None:
    folder = str(write_evaluation(tmp_path / "agent", hand_made()))
    first, second = (make_figures(find_runs([folder]), ("svg", "pdf"))[0] for _ in range(2))
    assert [figure.files for figure in first] == [figure.files for figure in second]


def test_one_training_as_a_picture(tmp_path: Path) -> None:
    train = write_training(tmp_path / "train", training_metrics(30))
    write_overview(find_runs([str(train)]).trainings[0], tmp_path / "curves.png")
    assert image.imread(tmp_path / "curves.png").shape[0] > 300


def test_smoothing_keeps_length_and_constants() -> None:
    assert smooth([3.0] * 7, 4) == [3.0] * 7
    assert smooth([0.0, 3.0, 6.0], 3) == [1.5, 3.0, 4.5]


def test_steps_without_a_measurement_are_gaps() -> None:
    values = [0.5, "absent", None, float("nan"), 1]
    metrics = [{"step": step, "a": value} for step, value in enumerate(values, start=1)]
    assert series([*metrics, {"step": 6}], "a") == ([1, 5], [0.5, 1.0])
