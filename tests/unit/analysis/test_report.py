"""The report over synthetic runs with known answers."""

from __future__ import annotations

import json
import pathlib
import re

import numpy as np
import pytest
from synthetic_runs import write_run

from rllib_efficientzero.analysis import experiments, measurement, reference
from rllib_efficientzero.analysis.document import Block, Figure, Table
from rllib_efficientzero.analysis.experiments import tables
from rllib_efficientzero.analysis.measurement import Measured
from rllib_efficientzero.analysis.report import write_report
from rllib_efficientzero.analysis.runs import Label, Runs, read_runs
from rllib_efficientzero.analysis.settings import compare

pytest.importorskip("matplotlib")
GAMES = reference.atari_games()


def raw(game: str, normalised: float) -> float:
    return GAMES[game].random + normalised * (GAMES[game].human - GAMES[game].random)


def table(blocks: list[Block], title: str) -> Table:
    return next(block for block in blocks if isinstance(block, Table) and block.title.startswith(title))


def row(found: Table, name: str) -> dict[str, str]:
    (cells,) = [cells for cells in found.rows if cells[0] == name]
    return dict(zip(found.columns, cells, strict=True))


def present(name: str, runs: Runs, budget: str = "full") -> list[Block]:
    experiment = experiments.load(name)
    return experiment.present(runs, experiment, budget, "")


@pytest.fixture(scope="module")
def all_games(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Every game played by three seeds at 0.4, 0.5 and 0.6 of a human; sticky actions halve that."""
    root = tmp_path_factory.mktemp("runs")
    for game in GAMES:
        for seed, level in enumerate((0.4, 0.5, 0.6)):
            played, sticky = [raw(game, level)] * 4, [raw(game, level / 2)] * 4
            write_run(root, Label("full", game, "efficientzero", seed), played, sticky=sticky)
    return root


def test_table_1_of_runs_with_a_known_mean(all_games: pathlib.Path) -> None:
    blocks = present("atari100k", read_runs(all_games))
    found = table(blocks, "Table 1")
    ours, sticky, muzero = (
        f"this package, {name}" for name in ("EfficientZero", "EfficientZero, sticky actions", "MuZero")
    )
    mean = row(found, "normalised mean")
    value, low, high = map(float, re.findall(r"\d\.\d+", mean[ours]))
    assert value == 0.5
    # 26 games of three runs each: the standard error of the mean is 0.0816 / sqrt(3 * 26).
    assert [low, high] == pytest.approx([0.5 - 0.0181, 0.5 + 0.0181], abs=0.003)
    assert mean[sticky].startswith("0.250 [")
    assert mean[muzero] == ""
    assert mean["EfficientZero (published)"] == "1.943"
    assert row(found, "normalised optimality gap")[ours].startswith("0.500")
    assert row(found, "Pong")[ours] == f"{raw('Pong', 0.5):.1f} (3)"
    figure = next(block for block in blocks if isinstance(block, Figure))
    assert "MuZero" in figure.caption  # has no bar, and the figure says so


def test_incomplete_games_give_no_aggregate_but_one_over_the_same_games(tmp_path: pathlib.Path) -> None:
    for seed in range(2):
        write_run(tmp_path, Label("full", "Pong", "efficientzero", seed), [raw("Pong", 0.5)])
    found = table(present("atari100k", read_runs(tmp_path)), "Table 1")
    ours = "this package, EfficientZero"
    assert row(found, "normalised mean")[ours] == ""
    of_pong = row(found, "normalised mean of Pong")
    assert of_pong[ours] == "0.500 [0.500, 0.500]"
    assert float(of_pong["EfficientZero (published)"]) == pytest.approx((20.1 + 20.7) / 35.3, abs=0.02)
    assert row(found, "Alien")[ours] == ""


def test_without_runs_every_cell_of_ours_is_empty() -> None:
    for name in ("atari100k", "dmc100k", "ablations"):
        for block in present(name, Runs()):
            if not isinstance(block, Table) or block.title.startswith("Other methods"):
                continue
            theirs = {"game", "random", "human", "task", "variant", "runs"}
            for cells in block.rows:
                for column, cell in zip(block.columns, cells, strict=True):
                    assert not cell or column in theirs or "published" in column, (name, column, cell)


def test_table_2(tmp_path: pathlib.Path) -> None:
    for seed, score in enumerate((800.0, 810.0, 820.0)):
        write_run(tmp_path, Label("full", "cartpole-swingup", "efficientzero", seed), [score, score])
    found = table(present("dmc100k", read_runs(tmp_path)), "Table 2")
    assert row(found, "Cartpole, Swingup")["this package"] == "810 ± 10 (3)"
    assert row(found, "Cartpole, Swingup")["EfficientZero (published)"] == "813 ± 19"
    assert row(found, "Reacher, Easy")["this package"] == ""


def test_table_3(tmp_path: pathlib.Path) -> None:
    for game in GAMES:
        write_run(tmp_path, Label("full", game, "without-value-prefix", 0), [raw(game, 0.25)])
    blocks = present("ablations", read_runs(tmp_path))
    found = row(table(blocks, "Table 3"), "without value prefix")
    assert (found["mean"], found["median"], found["mean (published)"], found["runs"]) == (
        "0.250",
        "0.250",
        "1.482",
        "26",
    )
    assert row(table(blocks, "Table 3"), "EfficientZero")["mean"] == ""


def test_evaluations_while_training_are_drawn_by_task_with_a_line_per_run(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = "MiniGrid-Empty-Random-6x6-v0"
    for seed in range(2):
        write_run(tmp_path, Label("small", task, "efficientzero", seed), [0.5, 0.75 + seed])
    write_run(tmp_path, Label("small", task, "without-consistency", 0), [0.0])
    write_run(tmp_path, Label("small", "Pong", "efficientzero", 0), [-20.0])  # of another experiment
    drawn = []
    monkeypatch.setattr(tables.plots, "curves", lambda panels, **options: drawn.append(panels) or b"")
    blocks = present("ablations", read_runs(tmp_path), "small")
    assert [block.title for block in blocks if isinstance(block, Figure)] == ["Evaluations while training"]
    assert row(table(blocks, "Table 3"), "EfficientZero")["runs"] == "2"
    full, without = [([100], [0.625]), ([100], [1.125])], [([100], [0.0])]
    assert drawn == [{task: {"EfficientZero": full, "without consistency": without}}]
    assert not [block for block in present("ablations", Runs(), "small") if isinstance(block, Figure)]


def test_a_line_ends_at_the_final_weights(tmp_path: pathlib.Path) -> None:
    directory = write_run(tmp_path, Label("small", "Pong", "efficientzero", 0), [3.0], sticky=[0.0])
    evaluation = {"num_interactions_lifetime": 40, "num_updates_lifetime": 60, "episode_returns": [1.0, 2.0]}
    (directory / "evaluation.json").write_text(json.dumps({"evaluations": [evaluation]}))
    (run,) = read_runs(tmp_path).runs
    assert tables._evaluated(run) == ([40, 100], [1.5, 3.0])


def test_columns_of_numbers_are_known_by_their_cells() -> None:
    found = Table("", ["a", "b", "c", "d"], [["1", "-2.5 ± 1", "3 days", "x"], ["2", "", "≠ 4", "5"]])
    assert [found.is_number(column) for column in range(4)] == [False, True, True, False]


def test_mean_and_std() -> None:
    assert tables.mean_and_std([]) == ""
    assert tables.mean_and_std([3.0]) == "3 (1)"
    assert tables.mean_and_std([2.0, 4.0]) == "3 ± 1.41 (2)"


def test_the_default_config_is_the_papers() -> None:
    from rllib_efficientzero import EfficientZeroConfig

    config = EfficientZeroConfig().environment("ale_py:ALE/Pong-v5")
    settings = compare(config.to_dict(), config.describe_protocol())
    assert [setting.name for setting in settings if setting.differs or not setting.ours] == []
    changed = config.training(lr=0.1, optimizer={"type": "adam"})
    differing = {setting.name for setting in compare(changed.to_dict(), {}) if setting.differs}
    assert differing == {"Optimizer", "Optimizer's learning rate"}


def test_runs_without_a_label_have_sections_of_their_own(tmp_path: pathlib.Path) -> None:
    for variant in ("efficientzero", "without-correction"):
        write_run(tmp_path / "runs", Label("x", "Pong", variant, 0), [3.5], labelled=False)
    write_run(tmp_path / "runs", Label("small", "MiniGrid-Empty-Random-6x6-v0", "efficientzero", 0), [0.5])
    files, _ = write_report([tmp_path / "runs"], tmp_path / "report")
    headings = [line for line in files[1].read_text().splitlines() if line.startswith("## ")]
    assert "## Table 3: Ablations (unlabelled)" in headings
    assert "## Table 1 and Figure 1: Atari 100k (unlabelled)" in headings
    assert "## Table 3: Ablations (small)" in headings
    # A grid world is no game of the benchmark.
    assert "## Table 1 and Figure 1: Atari 100k (small)" not in headings


def test_a_report_is_one_file_and_says_what_it_left_out(tmp_path: pathlib.Path) -> None:
    root, out = tmp_path / "runs", tmp_path / "report"
    write_run(root, Label("smoke", "Pong", "efficientzero", 0), [7.5], sticky=[6.5])
    broken = write_run(root, Label("smoke", "Pong", "efficientzero", 1), [8.5])
    (broken / "result.json").unlink()
    curve = {"updates": [0, 1], "train": [2.0, 1.0], "held_out": [2.0, 1.5]}
    about = {
        "experiment": "value-prefix",
        "budget": "smoke",
        "parameters": {},
        "checkpoints": {},
        "seconds": 1.0,
        "cpu_seconds": 1.0,
        "device": "cpu",
    }
    counts = {"positions": {"train": 90, "held_out": 1210}, "parts": {"train": 26, "held_out": 3}}
    values = {"curves": {"value prefix": curve, "per-step reward": curve}, **counts}
    measurement.write(measurement.directory_of(root, "value-prefix", "smoke"), about, Measured(values))
    damaged = measurement.directory_of(root, "decoder", "smoke")
    measurement.write(damaged, about, Measured({}, {"x": np.zeros(3)}))
    (damaged / measurement.ARRAYS_FILE).write_bytes(b"no archive")
    foreign = measurement.directory_of(root, "value-targets", "smoke")
    measurement.write(foreign, about | {"parameters": {"stages": 1}}, Measured({"stages": [{"stage": 100}]}))
    files, runs = write_report([root], out)
    html, markdown = (file.read_text() for file in files)
    assert len(runs.left_out) == 1
    for text in (html, markdown):
        assert str(broken) in text
        assert "SMOKE" in text
        assert "7.5 (1)" in text
        assert "Held out are 3 of 29 parts of up to 500 steps, 1,210 positions, of the same episodes" in text
        assert f"left out: {damaged} is damaged" in text
        assert f"left out: {foreign}: it does not hold what this version measures" in text
        assert "Nothing of this was run at the paper's budget." in text
    assert not re.search(r'(src|href)="(?!data:)', html)
    pictures = re.findall(r"\]\((figures/[^)]+)\)", markdown)
    assert pictures
    assert all((out / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
