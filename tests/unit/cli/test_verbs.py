"""Every verb but `train`, on a tiny policy."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from invoking import rllib
from policy_helpers import IMAGES, VECTORS, write_policy_with_other_weights, write_tiny_policy

from rllib_efficientzero.checkpoint.manifest import write_manifest
from rllib_efficientzero.cli import evaluate, plot
from rllib_efficientzero.cli.reference import with_reference
from rllib_efficientzero.models import observation_planes
from rllib_efficientzero.policy import load_policy
from rllib_efficientzero.scores import human_normalised

ROOT = pathlib.Path(__file__).parents[3]


def test_evaluate_reports_every_episode(policy_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    out = tmp_path / "scores.json"
    done = rllib("evaluate", policy_dir, "--episodes", 3, "--seed", 5, "--out", out)
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    assert [episode["seed"] for episode in report["episodes"]] == [5, 6, 7]
    assert report["return_mean"] == pytest.approx(np.mean([episode["return"] for episode in report["episodes"]]))
    assert report["env"] == "CartPole-v1"
    assert report["num_simulations"] == 4
    assert report["human_normalised"] is None
    assert done.output.count("reward:") == 3
    assert "human-normalised" not in done.output
    plain = rllib("evaluate", policy_dir, "--episodes", 3, "--seed", 5, "--out", "-")
    assert json.loads(plain.stdout)["episodes"] == report["episodes"]


def test_evaluate_draws_video_and_tree(policy_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    video, tree = tmp_path / "play.mp4", tmp_path / "tree.svg"
    done = rllib("evaluate", policy_dir, "--episodes", 1, "--video", video, "--tree", f"step=2:{tree}")
    assert done.exit_code == 0, done.output
    assert video.stat().st_size > 1000
    assert tree.read_text().startswith("<svg")
    assert f"tree {tree}" in done.stdout
    plain = rllib("evaluate", policy_dir, "--episodes", 1, "--tree", f"step=2:{tree}", "--out", "-")
    assert len(json.loads(plain.stdout)["episodes"]) == 1, "and nothing else"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--tree", "2"], "--tree: must be 'step=N'"),
        (["--tree", "step=2:tree.png"], "drawn as .html or .svg"),
        (["--tree", "step=100000"], "ended before step 100000"),
        (["--tree", "step=0:/dev/null/tree.svg"], "--tree /dev/null/tree.svg: cannot be written: "),
        (["--tree", "step=0", "--num-simulations", "0"], "no tree without a search"),
        (["--video", "play.avi"], "an .mp4, not '.avi'"),
        (["--env", "Acrobot-v1"], "--env: 'Acrobot-v1' has observations of"),
        (["--env-config", "[1]"], "--env-config: must be a JSON object"),
        (["--device", "toaster"], "--device: no policy can be loaded onto 'toaster'"),
        (["--out", "/dev/null/all.json"], "cannot be written"),
        (["--config", "{}"], "--config: use --env, --env-config and --num-simulations"),
    ],
)
def test_evaluate_refuses_in_a_sentence(
    policy_dir: pathlib.Path,
    options: list[str],
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = rllib("evaluate", policy_dir, "--episodes", 1, *options)
    assert done.exit_code == 2
    assert complaint in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


@pytest.mark.parametrize("of_stdout", [False, True])
def test_scores_are_written_where_a_tree_cannot_be(
    policy_dir: pathlib.Path, tmp_path: pathlib.Path, of_stdout: bool
) -> None:
    out, tree = tmp_path / "scores.json", tmp_path / "tree.html"
    given = ["--episodes", 2, "--tree", f"step=100000:{tree}", "--out", "-" if of_stdout else out]
    done = rllib("evaluate", policy_dir, *given)
    assert done.exit_code == 2, "whoever asked for a tree has none"
    assert done.stderr == "error: --tree: no tree was drawn: the first episode ended before step 100000\n"
    assert not tree.exists()
    report = json.loads(done.stdout if of_stdout else out.read_text())
    assert len(report["episodes"]) == 2
    assert of_stdout or "over 2 episodes" in done.stdout


def test_a_score_under_other_settings_is_no_humans(tmp_path: pathlib.Path) -> None:
    """The score relative to humans is the benchmark's, whose settings are the policy's own."""
    told = []
    for env_config in ({}, {"max_frames": 100}):
        report = {"env": "ale_py:ALE/Pong-v5", "env_config": env_config, "episodes": [{"return": 14.6}]}
        evaluate.write_report(report, str(tmp_path / "scores.json"))
        told.append(json.loads((tmp_path / "scores.json").read_text())["human_normalised"])
    assert told == [pytest.approx(1.0), None]


def test_options_of_the_old_evaluate_are_answered(policy_dir: pathlib.Path) -> None:
    done = rllib("evaluate", policy_dir, "--episodes", 1, "--run", "EfficientZero", "--steps", 100, "--render")
    assert done.exit_code == 0, done.output
    told = " ".join(done.stderr.split())
    for option, instead in (("algo", "the checkpoint says"), ("steps", "whole episodes"), ("render", "--video")):
        assert f"--{option} is not needed any more: {instead}" in told
    moved = rllib("rollout", policy_dir, "--run", "PPO")
    assert moved.exit_code == 2
    assert "use rllib evaluate CHECKPOINT" in moved.stderr


def test_pickles_are_not_loaded_untrusted(tmp_path: pathlib.Path) -> None:
    assert "there is no checkpoint directory" in rllib("evaluate", tmp_path / "nothing").stderr
    assert "neither a policy of EfficientZero nor" in rllib("evaluate", tmp_path).stderr
    (tmp_path / "rllib_checkpoint.json").write_text("{}")
    (tmp_path / "class_and_ctor_args.pkl").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    done = rllib("evaluate", tmp_path)
    assert done.exit_code == 2
    assert "add --trust-checkpoint" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--num-simulations", "0"],
        ["--num-envs", "8"],
        ["--device", "cpu"],
        ["--video", "play.mp4"],
        ["--fps", "15"],
        ["--tree", "step=1"],
    ],
)
def test_options_about_searches_are_refused_for_other_algorithms(tmp_path: pathlib.Path, options: list[str]) -> None:
    (tmp_path / "rllib_checkpoint.json").write_text("{}")
    done = rllib("evaluate", tmp_path, "--trust-checkpoint", *options)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {options[0]}: only for EfficientZero's policies")


def test_the_newest_checkpoint_of_a_trial_is_taken(tmp_path: pathlib.Path) -> None:
    """By every verb alike: what is not whole is passed over."""
    first, second, third = (tmp_path / f"checkpoint_{i:06d}" for i in range(3))
    for checkpoint in (first, second, third):
        write_tiny_policy(checkpoint / "policy", num_actions=2, env="CartPole-v1")
    weights = write_policy_with_other_weights(second / "policy")
    for checkpoint in (first, second, third):
        (checkpoint / "replay").write_text("gigabytes")
        write_manifest(checkpoint, {})
    (second / "replay").write_text("which are not read")
    (third / "policy" / "policy.safetensors").write_bytes(b"")
    done = rllib("evaluate", tmp_path, "--episodes", 1, "--out", "-")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["checkpoint"] == str(second)
    assert "warning: checkpoint passed over" in done.stderr
    done = rllib("export", tmp_path, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert load_policy(tmp_path / "out").description["weights"]["sha256"] == weights
    for checkpoint in (first, second):
        (checkpoint / "policy" / "policy.json").unlink()
    for arguments in (["evaluate", tmp_path], ["export", tmp_path, tmp_path / "new"]):
        done = rllib(*arguments)
        assert done.exit_code == 2
        assert f"There is no policy and no whole checkpoint in {tmp_path}" in done.stderr


def test_the_newest_checkpoint_of_another_algorithms_trial_is_named(tmp_path: pathlib.Path) -> None:
    for name in ("checkpoint_000000", "checkpoint_000001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rllib_checkpoint.json").write_text("{}")
    done = rllib("evaluate", tmp_path)
    assert done.exit_code == 2
    assert f"{tmp_path / 'checkpoint_000001'} has no policy.json" in done.stderr


def test_examples_are_listed_shown_and_run() -> None:
    listed = rllib("example", "list", "--filter", "cartpole-ez").output
    assert re.search(r"^cartpole-ez +EfficientZero on a vector observation", listed, flags=re.MULTILINE)
    assert list(yaml.safe_load(rllib("example", "get", "pong-ez").stdout)) == ["pong-ez"]
    wrong = rllib("example", "get", "pong-es")
    assert wrong.exit_code == 2
    assert "did you mean 'pong-ez'?" in wrong.stderr
    dry = [sys.executable, "-m", "rllib_efficientzero", "example", "run", "cartpole-ez", "--seed", "x"]
    refused = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2, "options go to `train file`"
    assert "--seed" in refused.stderr


def test_exported_policies_act_alike(policy_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    done = rllib("export", policy_dir, tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["policy.json", "policy.safetensors"]
    frames = np.random.default_rng(0).normal(size=(4, *VECTORS.shape)).astype(np.float32)
    policies = [load_policy(directory) for directory in (policy_dir, tmp_path / "out")]
    values = [policy.act(frames).root_value for policy in policies]
    np.testing.assert_array_equal(*values)
    assert "already" in rllib("export", policy_dir, policy_dir).stderr


@pytest.mark.long
@pytest.mark.parametrize("space", [VECTORS, IMAGES])
def test_onnx_computes_what_torch_does(space: Any, tmp_path: pathlib.Path) -> None:
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    write_tiny_policy(tmp_path, space)
    done = rllib("export", tmp_path, tmp_path / "out", "--onnx")
    assert done.exit_code == 0, done.output
    network = load_policy(tmp_path).network
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (5, *space.shape)).astype(space.dtype))
    planes = observation_planes(frames)

    def run(name: str, **inputs: torch.Tensor) -> list[np.ndarray]:
        model = onnx.load(str(tmp_path / "out" / f"{name}.onnx"))
        onnx.checker.check_model(model)
        arrays = {key: value.numpy() for key, value in inputs.items()}
        return reference.ReferenceEvaluator(model).run(None, arrays)

    root = network.initial_inference(planes)
    (latent,) = run("representation", planes=planes)
    np.testing.assert_allclose(latent, root.latent.numpy(), rtol=1e-3, atol=1e-4)
    logits, value = run("prediction", latent=root.latent)
    np.testing.assert_allclose(logits, root.policy_logits.numpy(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(value, root.value.numpy(), rtol=1e-3, atol=1e-3)
    action = torch.tensor([0, 1, 2, 0, 1])
    after = network.recurrent_inference(root.latent, root.reward_hidden, action)
    found = run("dynamics", latent=root.latent, reward_hidden=root.reward_hidden, action=action)
    for ours, theirs in zip(found, (after.latent, after.reward_hidden, after.value_prefix), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-3)


def write_trial(directory: pathlib.Path, env: str, returns: list[float]) -> None:
    directory.mkdir(parents=True)
    rows = [
        {
            "num_env_steps_sampled_lifetime": 100 * (index + 1),
            "env_runners": {"episode_return_mean": value},
            "config": {"env": env},
        }
        for index, value in enumerate(returns)
    ]
    (directory / "result.json").write_text("\n".join(map(json.dumps, rows)) + '\n{"cut off')


def add_evaluation(directory: pathlib.Path, value: float) -> None:
    """As RLlib's own algorithms have it, in the last whole result."""
    file = directory / "result.json"
    lines = file.read_text().splitlines()
    row = json.loads(lines[-2]) | {"evaluation": {"env_runners": {"episode_return_mean": value}}}
    file.write_text("\n".join([*lines[:-2], json.dumps(row)]))


def test_training_returns_are_not_normalised(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    write_trial(tmp_path / "pong" / "trial_0", "ale_py:ALE/Pong-v5", [-20.7, 14.6])
    done = rllib("plot", tmp_path / "pong", "--out", tmp_path / "curves.png")
    assert done.exit_code == 0, done.output
    assert "human-normalised ale_py" not in done.output
    assert "not human-normalised: pong trial_0 has training returns only" in done.stderr.replace("\n", " ")
    write_trial(tmp_path / "pong" / "trial_1", "ale_py:ALE/Pong-v5", [-20.7, 14.6])
    add_evaluation(tmp_path / "pong" / "trial_1", 14.6)
    done = rllib("plot", tmp_path / "pong", "--out", tmp_path / "curves.png", "--human")
    assert done.exit_code == 0, done.output
    assert "pong trial_1: 1 at 200 environment steps" in done.output
    assert "not drawn: --human: pong trial_0 has training returns only" in done.stderr.replace("\n", " ")


def test_a_resumed_run_is_drawn_as_if_it_had_not_gone_on_before(tmp_path: pathlib.Path) -> None:
    rows = [(1, 100, 1.0), (2, 200, 2.0), (3, 300, 3.0), (4, 400, 4.0), (2, 205, 7.0), (3, 305, 8.0)]
    lines = [
        {
            "training_iteration": i,
            "num_env_steps_sampled_lifetime": steps,
            "env_runners": {"episode_return_mean": value},
        }
        for i, steps, value in rows
    ]
    (tmp_path / "result.json").write_text("\n".join(map(json.dumps, lines)))
    curve = plot.read_curve(tmp_path, None)
    assert (curve.steps, curve.values) == ([100, 205, 305], [1.0, 7.0, 8.0])


@pytest.mark.parametrize(
    ("envs", "unit"),
    [
        (["CartPole-v1"], "environment steps"),
        (["dmc/cartpole-swingup"], "decisions"),
        (["CartPole-v1", "dmc/cartpole-swingup"], "environment steps (DMControl: decisions)"),
    ],
)
def test_the_axis_says_what_steps_are(envs: list[str], unit: str) -> None:
    assert plot._unit([plot.Curve("", env, [1.0], [1.0]) for env in envs]) == unit


def test_plot_draws_every_trial(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    write_trial(tmp_path / "a" / "trial_0", "ale_py:ALE/Pong-v5", [-20.7, 14.6])
    write_trial(tmp_path / "a" / "trial_1", "ale_py:ALE/Boxing-v5", [0.1, 0.1])
    record = {"num_interactions_lifetime": 90, "episode_returns": [10.0, 19.2]}
    (tmp_path / "a" / "trial_0" / "evaluation.json").write_text(json.dumps({"evaluations": [record]}))
    add_evaluation(tmp_path / "a" / "trial_1", 0.1)
    out = tmp_path / "plots" / "curves.svg"
    done = rllib("plot", tmp_path / "a", "--out", out)
    assert done.exit_code == 0, done.output
    assert out.stat().st_size > 1000
    assert "a trial_0: 14.6 at 90 environment steps" in done.output
    assert "human-normalised ale_py:ALE/Pong-v5: 1.000 (1 trials)" in done.output
    assert "over 2 games: mean 0.500, median 0.500, IQM 0.500, optimality gap 0.500" in done.output
    (tmp_path / "a" / "young").mkdir()
    (tmp_path / "a" / "young" / "result.json").touch()
    done = rllib("plot", tmp_path / "a", "--out", out)
    assert done.exit_code == 0, done.output
    assert "a trial_0: 14.6 at 90" in done.stdout
    assert "not drawn" in done.stderr
    assert "has no result yet" in done.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["{}/nothing"], "no result.json in"),
        (["{}/a", "--out", "curves.gif"], "not '.gif'"),
        (["{}/a", "--metric", "learners/loss"], "no result has learners/loss"),
        (["{}/a", "--human"], "no game of Atari 100k"),
        (["{}/pong", "--human"], "has training returns only"),
        (["{}/pong", "--human", "--metric", "env_runners/episode_return_mean"], "leave one of both out"),
        (["{}/b"], "result.json:1: not JSON"),
    ],
)
def test_plot_refuses_in_a_sentence(tmp_path: pathlib.Path, options: list[str], complaint: str) -> None:
    write_trial(tmp_path / "a" / "trial", "CartPole-v1", [1.0])
    write_trial(tmp_path / "b" / "trial", "CartPole-v1", [1.0])
    write_trial(tmp_path / "pong" / "trial", "ale_py:ALE/Pong-v5", [1.0])
    (tmp_path / "b" / "trial" / "result.json").write_text("not json\n{}\n")
    done = rllib("plot", *(option.format(tmp_path) for option in options))
    assert done.exit_code == 2
    assert complaint in done.stderr.replace("\n", " ")


def test_scores_relative_to_humans() -> None:
    assert human_normalised("ale_py:ALE/Pong-v5", 14.6) == pytest.approx(1.0)
    assert human_normalised("Boxing", 0.1) == pytest.approx(0.0)
    assert human_normalised("ale_py:ALE/Adventure-v5", 1.0) is None, "no game of the benchmark"
    assert human_normalised("CartPole-v1", 500.0) is None


def test_the_shell_completes_verbs() -> None:
    """What the script asks that `--install-completion` installs."""
    command = "from rllib_efficientzero.cli.main import app; app(prog_name='rllib')"
    environment = {**os.environ, "_RLLIB_COMPLETE": "complete_bash", "COMP_WORDS": "rllib ex", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert sorted(done.stdout.split()) == ["example", "export"]


def test_doctor_names_what_is_there() -> None:
    done = rllib("doctor")
    assert done.exit_code == 0, done.output
    for name in ("search tree", "torch", "gpu", "rendering", "video"):
        assert name in done.output


def test_the_documented_options_are_the_commands() -> None:
    """`python -m rllib_efficientzero.cli.reference docs/cli.md` brings the page up to date."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert text == with_reference(text)
