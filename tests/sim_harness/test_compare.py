"""Finished runs side by side: their numbers, what groups and tells them apart, and the files that show them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from agent.errors import DataError
from sim_harness.__main__ import main
from sim_harness.compare_plot import draw_all
from sim_harness.comparison import Group, load_groups, table_rows
from sim_harness.measures import MEASURES, fairness, jain, significant
from sim_harness.outcome import Curves, load_curves, load_outcome, mean_curves
from tests.sim_harness.made_up_runs import scenario_of, write_run

SHARES = st.lists(st.floats(0, 1e6), min_size=1, max_size=20)


def one(folder: Path) -> Group:
    """Return the group of a single run."""
    (group,) = load_groups([folder])
    return group


@given(SHARES)
def test_jains_index_lies_between_one_of_n_and_one(values: list[float]) -> None:
    """Its bounds are those of the definition; where nobody has anything it says nothing."""
    index = jain(values)
    if sum(value * value for value in values) == 0:
        assert index is None
    else:
        assert index is not None
        assert 1 / len(values) - 1e-9 <= index <= 1 + 1e-9


@given(st.floats(0.001, 1e6), st.integers(1, 20))
def test_jains_index_at_its_ends(value: float, count: int) -> None:
    """All equal is 1; one who has everything is 1/n."""
    assert jain([value] * count) == pytest.approx(1)
    assert jain([value] + [0.0] * (count - 1)) == pytest.approx(1 / count)


def test_fairness_is_between_types_of_device_whatever_their_numbers() -> None:
    """Each type counts once, with the mean of its nodes: (2 + 4)^2 / (2 (4 + 16)) = 0.9."""
    rounds = {"a": [1, 3, 2], "b": [4]}
    nodes = [{"device": device, "training_rounds": count} for device, counts in rounds.items() for count in counts]
    assert fairness({"per_node": nodes}, "training_rounds") == pytest.approx(0.9)
    assert fairness({"per_node": [*nodes, {"device": "a", "training_rounds": None}]}, "training_rounds") is None


def test_the_numbers_of_a_run(tmp_path: Path) -> None:
    """Accuracy, energy and its share, points per kWh, messages and bytes, as docs/compare.md defines them."""
    summary = write_run(tmp_path, scenario_of(), consensus=True)
    numbers = load_outcome(tmp_path).numbers
    train_j = summary["energy_j"]["train"]
    assert numbers["accuracy_mean"] == pytest.approx(0.885)
    assert numbers["train_wh"] == pytest.approx(train_j / 3600)
    assert numbers["share_of_d_psgd"] == pytest.approx(8 / 12)
    assert numbers["points_per_kwh"] == pytest.approx(88.5 / (train_j / 3.6e6))
    assert numbers["training_rounds"] == 32
    assert numbers["jain_training_rounds"] == pytest.approx(1)
    assert numbers["distance_rms"] == pytest.approx(10 / 12)
    assert (numbers["messages_delivered"], numbers["bytes_delivered"]) == (96, 1_000_000)


def test_a_run_that_trained_nothing_has_no_points_per_kwh(tmp_path: Path) -> None:
    """What cannot be told is told by nothing, not by infinity."""
    values = write_run(tmp_path, scenario_of())
    values["energy_j"]["train"] = 0.0
    values["bytes"]["delivered"] = None
    (tmp_path / "summary.json").write_text(json.dumps(values))
    numbers = load_outcome(tmp_path).numbers
    assert (numbers["points_per_kwh"], numbers["bytes_delivered"], numbers["distance_rms"]) == (None, None, None)
    assert numbers["share_of_d_psgd"] == 0


def test_the_curves_of_a_run(tmp_path: Path) -> None:
    """Accuracy over the nodes at each evaluated round, and the joules of all nodes up to its end."""
    scenario = scenario_of()
    summary = write_run(tmp_path, scenario)
    curves = load_curves(load_outcome(tmp_path))
    assert curves.rounds.tolist() == [2, 5, 8, 11]
    assert curves.mean == pytest.approx(0.885 * np.array([0.25, 0.5, 0.75, 1]), abs=1e-6)
    assert curves.std[-1] == pytest.approx(summary["accuracy"]["std"], abs=1e-6)
    assert curves.spent_j == pytest.approx(summary["energy_j"]["train"] * np.array([0.25, 0.5, 0.75, 1]))


def test_curves_of_several_seeds_are_their_mean(tmp_path: Path) -> None:
    """Only rounds that every seed evaluated are in it."""
    write_run(tmp_path / "a", scenario_of("evaluation.every=3"), accuracy=0.9)
    write_run(tmp_path / "b", scenario_of("evaluation.every=6"), accuracy=0.7)
    curves = [load_curves(load_outcome(tmp_path / name)) for name in "ab"]
    both = mean_curves(curves)
    assert both.rounds.tolist() == [5, 11]
    assert both.mean == pytest.approx([0.785 / 2, 0.785], abs=1e-6)
    assert both.spent_j == pytest.approx(curves[1].spent_j)


def test_runs_that_differ_in_their_seed_only_are_one_experiment(tmp_path: Path) -> None:
    """They have a mean and the sample standard deviation, whatever threads they had."""
    for seed, accuracy, threads in ((3, 0.9, "workers=0"), (1, 0.8, "workers=2"), (2, 0.7, "workers=1")):
        write_run(tmp_path / f"{seed}", scenario_of(f"seed={seed}", f"engine.{threads}"), accuracy=accuracy)
    (group,) = load_groups([tmp_path / name for name in "312"])
    assert group.seeds == [1, 2, 3]
    assert group.mean("accuracy_max") == pytest.approx(0.8)
    assert group.std("accuracy_max") == pytest.approx(0.1)
    rows = dict(table_rows([group]))
    assert rows["seeds"] == ["1, 2, 3"]
    assert rows["accuracy, best node"] == ["80.0% ± 10.0%"]
    assert rows["models delivered"] == ["96"]


@pytest.mark.parametrize("emulated", [False, True], ids=["real agents", "emulated"])
def test_deadlines_are_the_machines_for_real_agents_only(emulated: bool, tmp_path: Path) -> None:
    """On the virtual clock another deadline is another experiment."""
    for seed in (1, 2):
        folder = tmp_path / f"{seed}"
        values = write_run(folder, scenario_of(f"seed={seed}", f"timing.round_deadline_s={100 * seed}"))
        (folder / "summary.json").write_text(json.dumps({**values, **({"virtual_s": 1.0} if emulated else {})}))
    assert len(load_groups([tmp_path / "1", tmp_path / "2"])) == (2 if emulated else 1)


def test_the_same_seed_twice_is_not_two_seeds(tmp_path: Path) -> None:
    """Two runs of one scenario stand beside each other under their folders' names."""
    for name in ("here", "there"):
        write_run(tmp_path / name, scenario_of())
    groups = load_groups([tmp_path / "here", tmp_path / "there"])
    assert [group.label for group in groups] == ["demo, skiptrain (here)", "demo, skiptrain (there)"]


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        (["policy.name=d-psgd"], "demo, d-psgd"),
        (["policy.train_rounds=4", "policy.sync_rounds=2"], "demo, skiptrain, Γ 4/2"),
        (["topology.kind=ring"], "demo, skiptrain, ring 2"),
        (["learning.lr=0.01"], "demo, skiptrain, learning.lr=0.01"),
    ],
)
def test_a_label_names_what_differs(settings: list[str], label: str, tmp_path: Path) -> None:
    """Scenario and policy, and beyond them only what tells a run from another one of the same."""
    write_run(tmp_path / "a", scenario_of())
    write_run(tmp_path / "b", scenario_of(*settings))
    groups = load_groups([tmp_path / "a", tmp_path / "b"])
    assert groups[1].label == label
    assert not groups[1].note


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        (["model.name=gn-lenet"], "accuracy not comparable with the first: model.name gn-lenet, not small-cnn"),
        (["evaluation.samples=50"], "accuracy over rounds not comparable with the first: evaluation.samples 50, not 0"),
        (["nodes=5", "topology.degree=2"], "energy not comparable with the first: nodes 5, not 4"),
    ],
)
def test_what_does_not_compare_is_noted_not_refused(settings: list[str], note: str, tmp_path: Path) -> None:
    """The table says which numbers are of no use beside the first run's, and why."""
    write_run(tmp_path / "a", scenario_of())
    write_run(tmp_path / "b", scenario_of(*settings))
    groups = load_groups([tmp_path / "a", tmp_path / "b"])
    assert [group.note for group in groups] == ["", note]
    assert dict(table_rows(groups))["note"] == ["", note]


def test_what_a_run_lacks_is_noted(tmp_path: Path) -> None:
    """Rounds that did not end and failed trainings stand in the note, with the seed where there are several."""
    summary = write_run(tmp_path / "1", scenario_of("seed=1"))
    write_run(tmp_path / "2", scenario_of("seed=2"))
    summary.update(rounds_ended=40, unfinished_nodes=["n001"])
    summary["training_rounds"]["failed"] = 2
    (tmp_path / "1" / "summary.json").write_text(json.dumps(summary))
    lacks = "incomplete: 40 of 48 rounds of all nodes ended; n001 did not come to the end; 2 trainings gave no model"
    (group,) = load_groups([tmp_path / "1"])
    assert group.note == lacks
    (group,) = load_groups([tmp_path / "2", tmp_path / "1"])
    assert group.note == f"seed 1 {lacks}"
    with pytest.raises(DataError, match=r"rounds\.csv has 48 rows, but .* 40 rounds"):
        load_curves(group.first)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0123456, "0.0123"), (0.5, "0.500"), (12, "12.0"), (99.96, "100"), (268.234, "268"), (12_345.6, "12,346")],
)
def test_three_digits_are_shown_zeros_too(value: float, shown: str) -> None:
    """Numbers in one row of the table look alike, and none has an exponent."""
    assert significant(value) == shown


@pytest.mark.parametrize("settings", [[], ["rounds=12000"], ["policy.train_rounds=11", "energy.devices=[poco-x3]"]])
def test_the_labels_of_the_bars_end_before_the_axis_does(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long a bar and its label are, both are inside the panel."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: figures.append(figure))
    write_run(tmp_path / "a", scenario_of("evaluation.every=0", *settings))
    write_run(tmp_path / "b", scenario_of("evaluation.every=0", *settings, "policy.name=d-psgd"))
    draw_all(groups := load_groups([tmp_path / "a", tmp_path / "b"]), no_curves(groups), tmp_path)
    (figure,) = figures
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert len(axes.texts) == 2
    end = axes.get_window_extent().x1
    assert end - 20 < max(text.get_window_extent().x1 for text in axes.texts) < end


def test_long_labels_leave_legends_and_headings_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that differ in several settings have long labels; nothing of them ends outside the picture."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: figures.append(figure))
    for name, kind in (("a", "native"), ("b", "sequential")):
        settings = (f"engine.kind={kind}", f"learning.batch_size={len(kind)}", f"learning.lr=0.0{len(kind)}")
        write_run(tmp_path / name, scenario_of(*settings), consensus=True)
    groups = load_groups([tmp_path / "a", tmp_path / "b"])
    assert min(len(group.label) for group in groups) > 70
    draw_all(groups, {group.label: load_curves(group.first) for group in groups}, tmp_path)
    assert len(figures) == 4
    for figure in figures:
        figure.draw_without_rendering()
        words = [text for legend in figure.legends for text in legend.get_texts()]
        headings = [text for text in figure.findobj(Text) if text.get_text() and text.get_fontweight() == "bold"]
        assert headings
        for box in (text.get_window_extent() for text in [*words, *headings]):
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1


def no_curves(groups: Sequence[Group]) -> dict[str, Curves]:
    """Return the curves of runs that nobody tested."""
    nothing = np.zeros(0)
    return {group.label: Curves(np.zeros(0, np.int64), nothing, nothing, nothing, nothing) for group in groups}


class Tags(HTMLParser):
    """Collects what a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the tag, and every address in it."""
        self.names.add(tag)
        self.sources += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "action"}]


def test_the_files_of_a_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Table, four pictures, and a page that needs nothing but itself."""
    write_run(tmp_path / "a", scenario_of(), consensus=True)
    write_run(tmp_path / "b", scenario_of("policy.name=d-psgd"), accuracy=0.7)
    out = tmp_path / "out"
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "share of D-PSGD's energy" in shown
    names = sorted(path.name for path in out.iterdir())
    pictures = [f"compare-{name}.png" for name in ("bars", "consensus", "energy", "rounds")]
    assert names == sorted([*pictures, "compare-curves.csv", "compare.csv", "compare.html"])
    for name in pictures:
        with Image.open(out / name) as image:
            assert image.width == 1200
    page = Tags()
    page.feed((out / "compare.html").read_text(encoding="utf-8"))
    assert len(page.sources) == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not page.names & {"script", "link", "iframe", "object", "embed", "form", "base"}


def test_the_page_and_pictures_take_any_text_as_text(tmp_path: Path) -> None:
    """A setting is no HTML, and no formula of matplotlib's."""
    for name, path in (("a", ""), ("b", "<img src=x onerror=alert(1)> $\\\\frac{"), ("c", "[bold]")):
        write_run(tmp_path / name, scenario_of(f"data.path='{path}'"))
    folders = [str(tmp_path / name) for name in "abc"]
    assert main(["compare", *folders, "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert "<img src=x" not in text
    assert "&lt;img src=x" in text


def test_the_table_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """compare.csv and --json hold every number; what is not known is empty, or null."""
    for seed in (1, 2):
        write_run(tmp_path / f"{seed}", scenario_of(f"seed={seed}"), accuracy=0.8 + seed / 20)
    folders = [str(tmp_path / name) for name in "12"]
    assert main(["compare", *folders, "--json", "--out", str(tmp_path / "out")]) == 0
    (group,) = json.loads(capsys.readouterr().out)
    with (tmp_path / "out" / "compare.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["seeds"] == "1 2"
    for measure in MEASURES:
        for name in (measure.name, f"{measure.name}_seed_std"):
            assert (float(row[name]) if row[name] else None) == group[name]
        assert [run[measure.name] for run in group["runs"]] == [
            load_outcome(Path(f)).numbers[measure.name] for f in folders
        ]
    assert group["distance_rms"] is None
    assert [point["round"] for point in group["curve"]] == [2, 5, 8, 11]
    assert set(group["curve"][0]) == {"round", "accuracy_mean", "accuracy_std", "accuracy_min", "spent_j"}


def test_the_points_of_the_curves(tmp_path: Path) -> None:
    """As the pictures show them, and what consensus.csv says of the same rounds, where there is one."""
    write_run(tmp_path / "a", scenario_of(), consensus=True)
    write_run(tmp_path / "b", scenario_of("policy.name=d-psgd"))
    folders = [tmp_path / "a", tmp_path / "b"]
    assert main(["compare", *map(str, folders), "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "compare-curves.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for group in load_groups(folders):
        own = [row for row in rows if row["label"] == group.label]
        curves, told = load_curves(group.first), {row.round: row for row in group.first.consensus}
        assert [int(row["round"]) for row in own] == curves.rounds.tolist()
        for name, column in (
            ("accuracy_mean", curves.mean),
            ("accuracy_min", curves.worst),
            ("spent_j", curves.spent_j),
        ):
            assert [float(row[name]) for row in own] == column.tolist()
        assert all(curves.worst <= curves.mean)
        assert [row["distance_rms"] for row in own] == [
            str(told[int(row["round"])].distance_rms) if told else "" for row in own
        ]


def test_one_run_and_one_that_nobody_tested(tmp_path: Path) -> None:
    """A single run has a page too; without evaluations only the bars are drawn."""
    write_run(tmp_path / "a", scenario_of("evaluation.every=0"))
    assert main(["compare", str(tmp_path / "a"), "--out", str(tmp_path / "a")]) == 0
    assert {path.name for path in (tmp_path / "a").glob("*.png")} == {"compare-bars.png"}
    assert "one run" in (tmp_path / "a" / "compare.html").read_text(encoding="utf-8")


def test_what_has_diverged_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Infinite distances and a loss that is none are drawn as nothing, and are null in JSON."""
    write_run(tmp_path, scenario_of(), consensus=True)
    path = tmp_path / "consensus.csv"
    head, *_, last = path.read_text().splitlines()
    path.write_text("\n".join([head, "2,0.9,nan,1.5", "5,0.9,inf,inf", last.replace("0.5", "nan"), ""]))
    assert main(["compare", str(tmp_path), "--json", "--out", str(tmp_path / "out")]) == 0
    (group,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert [(row["loss"], row["distance_rms"] is None) for row in group["consensus"]] == [
        (None, False),
        (None, True),
        (None, False),
    ]


@pytest.mark.parametrize("name", ["summary.json", "rounds.csv", "evaluation.csv", "scenario.yaml"])
def test_a_folder_without_a_finished_run_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line names the file that is missing."""
    write_run(tmp_path, scenario_of())
    (tmp_path / name).unlink()
    assert main(["compare", str(tmp_path), "--json"]) == DataError.exit_code
    assert re.search(rf"holds no finished run.*{re.escape(name)}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("rounds.csv", "n000,2,", "n000,12,", r"rounds\.csv:4: .*round 12 is not of the run"),
        ("evaluation.csv", "2,n000", "99,n000", r"evaluation\.csv has rounds that are not of the run"),
        ("summary.json", '"training_rounds"', '"trained"', r"summary\.json lacks a number.*training_rounds"),
        ("scenario.yaml", "nodes:", "nodes: [", r"scenario\.yaml:.*run the scenario again"),
    ],
)
def test_a_damaged_file_is_named(name: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    """Files that were cut, edited or mixed are refused, with the place where that shows."""
    write_run(tmp_path, scenario_of())
    path = tmp_path / name
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        load_curves(load_outcome(tmp_path))


def test_a_row_may_name_thousands_of_neighbours(tmp_path: Path) -> None:
    """`mixed` of a node in a complete graph of 4,096 is longer than what csv reads by itself."""
    write_run(tmp_path, scenario_of())
    path = tmp_path / "rounds.csv"
    with path.open(newline="") as file:
        names, *rows = csv.reader(file)
    rows[0][names.index("mixed")] = ";".join(f"n{i:04d}@3:{'0' * 32}" for i in range(4096))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    assert len(load_curves(load_outcome(tmp_path)).rounds)
