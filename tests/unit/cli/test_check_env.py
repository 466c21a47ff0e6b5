"""`rllib check-env`: findings, sentences, exit codes, time."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import Result
from typer.testing import CliRunner

from rllib_efficientzero.cli.main import app
from tests import malformed_envs


def check(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["check-env", *arguments])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["CartPole-v1"], ("vectors of 4; 2 actions", "rewards  1; returns")),
        (["FrozenLake-v1", "--env-config", '{"is_slippery": false}'], ("vectors of 16; 4 actions",)),
        (["Taxi-v3", "--support-size", "100"], ("vectors of 500; 6 actions",)),
        (["Blackjack-v1", "--import", "json"], ("vectors of 45; 2 actions", "-1 to 1")),
        (["tests.malformed_envs.Walk"], ("vectors of 2; 3 actions",)),
    ],
)
def test_what_is_in_order_gets_its_description_and_0(arguments: list[str], words: tuple[str, ...]) -> None:
    result = check(*arguments, "--seconds", "0.5")
    assert result.exit_code == 0, result.output
    for word in (*words, "steps/s", "fine: nothing to be said against it"):
        assert word in result.stdout
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("NanReward", "error", "the reward is nan in step 1 of an episode: return a finite number for every step."),
        ("TextObservations", "error", "cannot read observations of Text(1, 5, charset="),
        ("RaisesWhenMade", "error", "cannot be made: FileNotFoundError: no such level: 7: make it by hand first."),
        ("Unseeded", "warning", "draw from self.np_random only."),
        ("LimitAsTermination", "warning", "return truncated=True instead"),
    ],
)
def test_findings_are_sentences_and_1(name: str, kind: str, words: str) -> None:
    result = check(f"tests.malformed_envs.{name}", "--seconds", "2")
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{kind}: ")
    assert words in line
    assert result.stdout.splitlines()[-1] == "1 finding"


def test_rewards_are_compared_with_the_support_that_is_given() -> None:
    assert check("CartPole-v1", "--support-size", "2", "--seconds", "0.5").exit_code == 1
    assert check("CartPole-v1", "--support-size", "30", "--seconds", "0.5").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["CartPol-v1"], "did you mean 'CartPole-v1'?"),
        (["dmc/cartpole-swing"], "dmc/cartpole-swingup"),
        (["nowhere.Env"], "cannot import 'nowhere.Env': No module named 'nowhere'"),
        (["tests.malformed_envs.Nothing"], "has no class or function 'Nothing'"),
        (["CartPole-v1", "--env-config", "[1]"], "--env-config: must be a JSON object"),
        (["CartPole-v1", "--import", "no_such_module"], "--import: cannot import 'no_such_module'"),
        (["CartPole-v1", "--seconds", "0"], "0.1"),
        ([], "Missing argument"),
    ],
)
def test_wrong_input_is_2(arguments: list[str], words: str) -> None:
    if arguments and "dmc" in arguments[0]:
        pytest.importorskip("dm_control")
    result = check(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Pong", "ale_py:ALE/Pong-v5"),
        ("Pnog", "ale_py:ALE/Pong-v5"),
        ("ALE/Pong-v5", "ale_py:ALE/Pong-v5"),
        ("ALE/Pog-v5", "ale_py:ALE/Pong-v5"),
        ("ale_py:Pong", "ale_py:ALE/Pong-v5"),
        ("Pong-v5", "ale_py:ALE/Pong-v5"),
        ("Pong-v4", "ale_py:Pong-v4"),
        ("CartPol-v1", "CartPole-v1"),
    ],
)
def test_of_atari_the_kind_that_the_protocol_plays_is_suggested(name: str, meant: str) -> None:
    pytest.importorskip("ale_py")
    refused = check(name)
    assert refused.exit_code == 2, refused.output
    assert refused.stderr == f"error: ENV: unknown environment {name!r}; did you mean {meant!r}?\n"


def test_ray_is_not_needed() -> None:
    """Whose import alone would take longer than a check may."""
    code = (
        "import sys; from rllib_efficientzero.cli.main import app\n"
        "try: app(['check-env', 'CartPole-v1', '--seconds', '0.1'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'ray', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_every_malformed_environment_is_named_here() -> None:
    """So that the list of mistakes and what is tested of them stay together."""
    from tests.unit.env.test_diagnosis import ERRORS, WARNINGS

    classes = {name for name, value in vars(malformed_envs).items() if isinstance(value, type)}
    own = {name for name in classes if getattr(malformed_envs, name).__module__ == malformed_envs.__name__}
    assert own - {"Walk"} == ERRORS.keys() | WARNINGS.keys()
