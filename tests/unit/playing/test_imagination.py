"""Decoders of what is imagined: learned from a network that stays as it is, kept in a file that need not be trusted."""

from __future__ import annotations

import pathlib
import pickle
import re
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import safetensors.torch
import torch
from decoder_helpers import WIDTH, MovingSquare, write_image_checkpoint, write_random_decoder
from policy_helpers import IMAGES, write_pendulum_policy, write_policy_with_other_weights, write_tiny_policy
from typer.testing import CliRunner

from rllib_efficientzero.checkpoint import CheckpointError
from rllib_efficientzero.cli.main import app
from rllib_efficientzero.playing.imagination import MAX_BYTES, imagine, load_decoder
from rllib_efficientzero.policy import Policy, load_policy
from rllib_efficientzero.serve.service import MAX_IMAGINED, PolicyService, Query


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_image_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def policy(checkpoint: pathlib.Path) -> Policy:
    return load_policy(checkpoint)


@pytest.fixture
def file(policy: Policy, tmp_path: pathlib.Path) -> pathlib.Path:
    return write_random_decoder(tmp_path / "decoder.safetensors", policy)


def rllib(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_what_is_imagined_are_the_latents_of_the_dynamics(policy: Policy, file: pathlib.Path) -> None:
    decoder = load_decoder(file, policy)
    stack = np.random.default_rng(0).integers(0, 256, IMAGES.shape, np.uint8)
    pictures = imagine(policy, decoder, stack, [1, 0, 1])
    assert (pictures.shape, pictures.dtype) == ((4, 8, 8, 3), np.uint8)
    planes = torch.from_numpy(stack).permute(0, 3, 1, 2).flatten(0, 1)[None] / 255
    latent = policy.network.represent(planes)
    hidden = policy.network.initial_reward_hidden(latent)
    for picture, action in zip(pictures, [1, 0, 1, None], strict=True):
        expected = 255 * decoder(latent)[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(picture, expected, atol=0.51)
        if action is not None:
            latent, hidden = policy.network.step(latent, hidden, torch.tensor([action]))
    assert len(np.unique(pictures.reshape(4, -1), axis=0)) == 4, "no two alike"


def test_a_decoder_of_the_runs_frames_draws_the_square(checkpoint: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """From a replay to pictures: closer to the frame than what all frames have in common."""
    out = tmp_path / "made" / "decoder.safetensors"
    before = (checkpoint / "policy" / "policy.safetensors").read_bytes()
    done = rllib("train-decoder", checkpoint, out, "--updates", 300, "--width", 8, "--batch-size", 32)
    assert done.exit_code == 0, done.output
    found, of_mean = map(float, re.findall(r"(-?[\d.]+) dB", done.output.split("held-out")[1]))
    assert found > of_mean + 3
    assert done.output.count("update ") == 3
    assert (checkpoint / "policy" / "policy.safetensors").read_bytes() == before
    policy = load_policy(checkpoint)
    env = MovingSquare()
    frame, _ = env.reset(seed=3)
    (picture,) = imagine(policy, load_decoder(out, policy), np.stack([frame, frame]), [])
    assert picture[frame > 0].mean() > picture[frame == 0].mean() + 60
    again = tmp_path / "again.safetensors"
    rllib("train-decoder", checkpoint, again, "--updates", 300, "--width", 8, "--batch-size", 32)
    # Not byte by byte: safetensors writes the entries of its header in any order.
    first, second = (safetensors.torch.load_file(path) for path in (out, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first), "the same seed, the same decoder"


def test_a_decoder_is_of_one_policy(policy: Policy, file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write_tiny_policy(tmp_path, IMAGES, num_actions=2)
    write_policy_with_other_weights(tmp_path)
    with pytest.raises(CheckpointError, match=r"latents of other weights.*train-decoder"):
        load_decoder(file, load_policy(tmp_path))


def _rewritten(tensors: dict[str, torch.Tensor], told: dict[str, str]) -> Callable[[pathlib.Path], object]:
    return lambda path: path.write_bytes(safetensors.torch.save(tensors, told))


def test_damaged_and_foreign_files_are_refused(policy: Policy, file: pathlib.Path) -> None:
    tensors = safetensors.torch.load(file.read_bytes())
    told = {"policy": policy.description["weights"]["sha256"], "width": str(WIDTH)}
    first = next(iter(tensors))
    cases: list[tuple[Callable[[pathlib.Path], object], str]] = [
        (lambda path: path.write_bytes(file.read_bytes()[:-5]), "is no decoder"),
        (lambda path: path.write_bytes(b""), "is no decoder"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is no decoder"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: None, "cannot be read: No such file"),
        (_rewritten(tensors, {}), "does not say of which policy"),
        (_rewritten(tensors, told | {"width": "1" * 5000}), "or how wide"),
        (_rewritten(tensors, told | {"width": "-4"}), "or how wide"),
        (_rewritten(tensors, told | {"width": "5"}), "does not fit"),
        (_rewritten({**tensors, "more": torch.zeros(1)}, told), "does not fit"),
        (_rewritten({**tensors, first: tensors[first].double()}, told), "does not fit"),
    ]
    for number, (make, complaint) in enumerate(cases):
        path = file.with_name(f"{number}.safetensors")
        make(path)
        with pytest.raises(CheckpointError, match=complaint):
            load_decoder(path, policy)
    with file.open("ab") as large:
        large.truncate(MAX_BYTES + 1)
    with pytest.raises(CheckpointError, match="more than"):
        load_decoder(file, policy)


def test_policies_without_frames_are_refused_in_a_sentence(file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    vectors, sampled = tmp_path / "vectors", tmp_path / "sampled"
    write_tiny_policy(vectors, num_actions=2, env="CartPole-v1")
    write_tiny_policy(sampled, IMAGES, action_space=gym.spaces.Box(-1, 1, (1,), np.float32))
    write_pendulum_policy(tmp_path / "pendulum")
    for directory, complaint in (
        (vectors, "sees vectors"),
        (tmp_path / "pendulum", "sees vectors"),
        (sampled, "samples its actions"),
    ):
        for arguments in (("play", directory, "--decoder", file), ("train-decoder", directory, file)):
            done = rllib(*arguments)
            assert done.exit_code == 2, done.output
            assert complaint in done.stderr


def test_wrong_options_are_answered_in_a_sentence(checkpoint: pathlib.Path, tmp_path: pathlib.Path) -> None:
    write_tiny_policy(tmp_path / "exported", IMAGES, num_actions=2)
    for arguments, complaint in (
        (("train-decoder", checkpoint, "decoder.pt"), "must end in .safetensors"),
        (("train-decoder", tmp_path / "exported", "d.safetensors"), "give one of its checkpoints"),
        (("train-decoder", tmp_path / "nowhere", "d.safetensors"), "no whole checkpoint"),
        (("train-decoder", checkpoint, "/proc/d.safetensors", "--updates", 1), "cannot be written"),
        (("play", checkpoint, "--decoder", tmp_path / "none"), "cannot be read: No such file"),
        (("play", checkpoint, "--decoder", "d", "--follow"), "--decoder: a decoder knows one checkpoint"),
    ):
        done = rllib(*arguments)
        assert done.exit_code == 2, done.output
        assert complaint in " ".join(done.stderr.split())


def test_answers_show_what_is_imagined(checkpoint: pathlib.Path, file: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """One picture more than steps of the principal line; none without a tree, and none once the policy is exchanged."""
    stack = np.zeros(IMAGES.shape, np.uint8)
    service = PolicyService(checkpoint, decoder=file)
    with_tree, plain, no_search = service.search(
        [Query(stack, num_simulations=n, with_tree=tree) for n, tree in ((40, True), (40, False), (0, True))]
    )
    assert with_tree.tree is not None
    assert with_tree.imagined is not None
    line = [node["action"] for node in with_tree.tree["principal_line"]]
    assert len(with_tree.imagined) == 1 + min(len(line), MAX_IMAGINED)
    expected = imagine(service.policy, load_decoder(file, service.policy), stack, line[:MAX_IMAGINED])
    np.testing.assert_array_equal(with_tree.imagined, expected)
    assert plain.imagined is None
    assert no_search.imagined is None
    write_tiny_policy(tmp_path, IMAGES, num_actions=2)
    write_policy_with_other_weights(tmp_path)
    service.load(tmp_path)
    (answer,) = service.search([Query(stack, num_simulations=4, with_tree=True)])
    assert answer.tree is not None
    assert answer.imagined is None
