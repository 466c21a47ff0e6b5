"""Policies at play: which episodes, in which environment, and what is shown of the search."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import types
from typing import Any
from xml.etree import ElementTree

import cv2
import gymnasium as gym
import numpy as np
import pytest
from policy_helpers import IMAGES, write_pendulum_policy, write_tiny_policy

from rllib_efficientzero.analysis.play import training_environment
from rllib_efficientzero.playing import FrameStack, Moment, PlayError, SearchTree, make_environment, play_episodes
from rllib_efficientzero.playing.environment import names_at, raw_picture
from rllib_efficientzero.playing.tree_drawing import MAX_DRAWN, tree_html, tree_svg
from rllib_efficientzero.playing.video import PANEL, VideoRecorder, annotated_frame
from rllib_efficientzero.policy import Policy, load_policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    directory = tmp_path_factory.mktemp("policy")
    write_tiny_policy(directory, num_actions=2, env="CartPole-v1")
    return load_policy(directory)


def test_frames_are_stacked_as_in_training() -> None:
    stack = FrameStack(3)
    one, two = np.array([1.0]), np.array([2.0])
    assert stack.push(one).ravel().tolist() == [1, 1, 1]
    assert stack.push(two).ravel().tolist() == [1, 1, 2]
    stack.reset()
    assert stack.push(two).ravel().tolist() == [2, 2, 2]


def test_one_whole_episode_per_seed(policy: Policy) -> None:
    envs = [make_environment(policy) for _ in range(2)]
    played = dict(play_episodes(policy, envs, [7, 8, 9]))
    assert [played[index].seed for index in range(3)] == [7, 8, 9]
    for episode in played.values():
        assert episode.terminated
        assert episode.episode_return == episode.length > 1, "CartPole pays 1 a step"
    again = dict(play_episodes(policy, envs, [7, 8, 9]))
    assert again == played


def test_sampled_actions_are_played_and_drawn(tmp_path: pathlib.Path) -> None:
    write_pendulum_policy(tmp_path)
    sampling = load_policy(tmp_path)
    trees: list[str] = []

    def watch(moment: Moment) -> None:
        assert moment.env.action_space.contains(moment.result.action[moment.row])
        annotated_frame(moment)
        tree = SearchTree.of_last_search(moment.policy, moment.row, int(moment.result.index[moment.row]))
        trees.append(tree_html(tree, names_at(moment.env, moment.result, moment.row), "t"))
        assert {tree.name_of(node, ["of the root"] * 16) for node in tree.nodes[1:] if node.depth > 1} <= {
            "sample 0",
            "sample 1",
        }

    envs = [make_environment(sampling, env_config={"max_episode_steps": 6})]
    ((_, episode),) = play_episodes(sampling, envs, [1], on_decision=watch, num_simulations=40)
    assert (episode.length, episode.terminated, len(trees)) == (6, False, 6)
    assert -100 < episode.episode_return < 0
    assert any("sample 1" in tree for tree in trees)


def test_the_environment_has_to_fit(policy: Policy) -> None:
    with pytest.raises(PlayError, match="observations of"):
        make_environment(policy, env="Acrobot-v1")
    with pytest.raises(PlayError, match="gymnasium knows no environment 'NoSuchThing-v0': name what makes it"):
        make_environment(policy, env="NoSuchThing-v0")
    for env in ("no_such_module.Corridor", "tests.faulty_envs.Nothing", "no_such_module:Corridor-v0"):
        with pytest.raises(PlayError, match="cannot be made here: "):
            make_environment(policy, env=env)


def test_a_policy_file_has_nothing_imported(tmp_path: pathlib.Path) -> None:
    write_tiny_policy(tmp_path, num_actions=2, env="antigravity:CartPole-v1")
    with pytest.raises(
        PlayError, match=r"would import the module 'antigravity'; allow it by --env antigravity:CartPole-v1"
    ):
        make_environment(load_policy(tmp_path))
    assert "antigravity" not in sys.modules
    write_tiny_policy(tmp_path, num_actions=2)
    with pytest.raises(PlayError, match="does not say in which environment"):
        make_environment(load_policy(tmp_path))


class Limited(gym.Wrapper):
    """CartPole as somebody's own class makes it, from its env_config."""

    def __init__(self, env_config: dict[str, Any]) -> None:
        limit = env_config.pop("limits")["steps"]
        super().__init__(gym.make("CartPole-v1", max_episode_steps=limit, **env_config))


def test_environments_of_ones_own_are_played_once_they_are_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "own_envs", types.SimpleNamespace(Limited=Limited))
    settings = {"limits": {"steps": 3}}
    write_tiny_policy(tmp_path, num_actions=2, env="own_envs.Limited", env_config=settings)
    own = load_policy(tmp_path)
    with pytest.raises(PlayError, match=r"would import the module 'own_envs'; allow it by --env own_envs\.Limited"):
        make_environment(own)
    env = make_environment(own, env="own_envs.Limited")
    ((_, episode),) = play_episodes(own, [env], [0])
    assert episode.length == 3, "with the settings that it was trained with"
    other = make_environment(own, env="own_envs.Limited", env_config={"limits": {"steps": 5}})
    assert dict(play_episodes(own, [other], [0]))[0].length == 5


def test_the_evaluations_settings_are_played(tmp_path: pathlib.Path) -> None:
    training, evaluation = {"max_episode_steps": 2}, {"max_episode_steps": 4}
    write_tiny_policy(tmp_path, num_actions=2, env="CartPole-v1", env_config=training, evaluation_env_config=evaluation)
    policy = load_policy(tmp_path)
    for env, length in ((make_environment(policy), 4), (training_environment(policy), 2)):
        assert dict(play_episodes(policy, [env], [0]))[0].length == length


def test_playing_needs_no_ray() -> None:
    code = "import sys, rllib_efficientzero.playing; sys.exit(any(name.split('.')[0] == 'ray' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def first_moments(policy: Policy, count: int) -> list[np.ndarray]:
    frames: list[np.ndarray] = []

    def watch(moment: Moment) -> None:
        if len(frames) < count:
            frames.append(annotated_frame(moment))

    list(play_episodes(policy, [make_environment(policy)], [0], on_decision=watch))
    return frames


def test_frames_show_the_decision_beside_the_picture(policy: Policy) -> None:
    frames = first_moments(policy, 2)
    env = make_environment(policy)
    env.reset(seed=0)
    picture = raw_picture(env, None)
    assert frames[0].shape[1] == picture.shape[1] + PANEL
    np.testing.assert_array_equal(frames[0][: picture.shape[0], : picture.shape[1], ::-1], picture)
    assert (frames[0][:, picture.shape[1] :] != frames[1][:, picture.shape[1] :]).any(), "its step, at least"


def test_without_a_renderer_the_observation_is_drawn(policy: Policy) -> None:
    blind = gym.make("CartPole-v1")
    low, high = (raw_picture(blind, np.full(4, value, np.float32)) for value in (-1.0, 1.0))
    assert low.shape == high.shape
    assert low.dtype == np.uint8
    assert (low != high).any()
    image = np.zeros(IMAGES.shape[1:], np.uint8)
    assert raw_picture(blind, image).shape == image.shape


def test_a_video_can_be_read_back(policy: Policy, tmp_path: pathlib.Path) -> None:
    recorder = VideoRecorder(tmp_path / "new" / "play.mp4", fps=10)
    list(play_episodes(policy, [make_environment(policy)], [0], on_decision=recorder.add))
    recorder.close()
    video = cv2.VideoCapture(str(recorder.path))
    read = 0
    while video.read()[0]:
        read += 1
    assert read == recorder.num_frames > 1


def test_the_tree_is_that_of_the_search(policy: Policy) -> None:
    frames = np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    result = policy.act(frames, num_simulations=30)
    for row in range(3):
        tree = SearchTree.of_last_search(policy, row, int(result.action[row]))
        visits = {child.action: child.visits for child in tree.root.children}
        assert [visits.get(action, 0) for action in range(2)] == result.visit_counts[row].tolist()
        assert tree.root.value == pytest.approx(result.root_value[row])
        for child in tree.root.children:
            assert child.qvalue(tree.discount) == pytest.approx(result.qvalues[row, child.action], abs=1e-4)
            assert child.prior == pytest.approx(result.prior[row, child.action], abs=1e-5)
        line = tree.principal_line()
        assert line[0].action == result.action[row]
        assert [node.depth for node in line] == list(range(1, len(line) + 1))
        prefixes = tree.value_prefixes(line)
        for node, prefix in zip(line, prefixes, strict=True):
            before = 0.0 if (node.depth - 1) % tree.horizon == 0 else prefixes[node.depth - 2]
            assert prefix == pytest.approx(before + node.reward)
    with pytest.raises(IndexError):
        policy.node_table(3)


def test_drawings_have_a_circle_per_node(policy: Policy) -> None:
    frames = np.zeros((1, 2, 4), np.float32)
    names = ["<left>", "right"]
    for simulations in (1, 30, 400):
        result = policy.act(frames, num_simulations=simulations)
        tree = SearchTree.of_last_search(policy, 0, int(result.action[0]))
        drawing = ElementTree.fromstring(tree_svg(tree, names))
        circles = drawing.findall(".//{*}circle")
        assert len(circles) == min(simulations + 1, MAX_DRAWN)
        assert len(drawing.findall(".//{*}path")) == len(circles) - 1
    page = tree_html(tree, names, "Step <1>")
    assert "Step &lt;1&gt;" in page
    assert "<left>" not in page


def test_without_search_the_prior_decides(policy: Policy) -> None:
    frames = np.random.default_rng(1).normal(size=(4, 2, 4)).astype(np.float32)
    alone, searched = policy.act(frames, num_simulations=0), policy.act(frames)
    np.testing.assert_array_equal(alone.prior, searched.prior)
    np.testing.assert_array_equal(alone.action, alone.prior.argmax(axis=1))
    np.testing.assert_array_equal(alone.root_value, searched.network_value)
    legal = np.array([[False, True]] * 4)
    assert (policy.act(frames, legal_actions=legal, num_simulations=0).action == 1).all()
