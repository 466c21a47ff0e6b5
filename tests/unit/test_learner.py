"""The learner on windows of random episodes: guarded steps, target network, learning rate, switches."""

from __future__ import annotations

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from graph_helpers import FakeRecorder
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from rllib_efficientzero import EfficientZero, EfficientZeroConfig
from rllib_efficientzero import metrics as names
from rllib_efficientzero.actors.batches import Batch
from rllib_efficientzero.efficientzero_learner import DivergedError, EfficientZeroLearner
from rllib_efficientzero.gradient_step import GradientStep
from rllib_efficientzero.models import compilation, cuda_graphs
from rllib_efficientzero.replay import PrioritizedReplay, Windows

BATCH, FRAME_STACK = 8, 2
ACTIONS = gym.spaces.Discrete(2)
SIZES = {
    "channels": 4,
    "reduced_channels": 2,
    "latent_size": 8,
    "mlp_hidden": [8],
    "head_hidden": [8],
    "lstm_hidden": 8,
    "support_size": 5,
    "projector_hidden": 8,
    "projector_out": 8,
    "predictor_hidden": 8,
}


def build(*, images: bool = False, gpus: int | None = None, **training: Any) -> EfficientZeroLearner:
    shape, high, dtype = ((12, 12, 1), 255, np.uint8) if images else ((3,), 1, np.float32)
    frame = gym.spaces.Box(0, high, shape, dtype)
    stacked = gym.spaces.Box(0, high, (FRAME_STACK, *shape), dtype)
    torch.manual_seed(0)
    defaults = {"num_simulations": 2, "frame_stack": FRAME_STACK, "lr": 0.05, "lr_warmup_updates": 0}
    config = (
        EfficientZeroConfig()
        .environment(observation_space=frame, action_space=ACTIONS)
        .training(
            train_batch_size_per_learner=BATCH,
            num_steps_sampled_before_learning_starts=BATCH,
            **{**defaults, **training},
        )
        .rl_module(model_config=SIZES)
    )
    if gpus is not None:
        config.learners(num_gpus_per_learner=gpus)
    config.validate()
    return config.build_learner(spaces={DEFAULT_MODULE_ID: (stacked, ACTIONS)})


def make_replay(*, images: bool = False) -> PrioritizedReplay:
    rng = np.random.default_rng(0)
    replay = PrioritizedReplay(1000, frame_stack=FRAME_STACK, unroll_steps=5, td_steps=5, seed=0)
    for number in range(3):
        length = 20
        if images:
            frames = list(rng.integers(0, 256, size=(length + 1, 12, 12, 1)).astype(np.uint8))
        else:
            frames = list(rng.random((length + 1, 3)).astype(np.float32))
        episode = SingleAgentEpisode(
            id_=str(number),
            observations=frames,
            actions=list(rng.integers(2, size=length)),
            rewards=list(rng.normal(size=length)),
            extra_model_outputs={
                "root_value": list(np.zeros(length, dtype=np.float32)),
                "visit_policy": list(np.full((length, 2), 0.5, dtype=np.float32)),
            },
            terminated=True,
            len_lookback_buffer=0,
        )
        replay.add([episode])
    return replay


def update(learner: EfficientZeroLearner, windows: Windows) -> dict[str, Any]:
    """Results of one update, without what it logged before."""
    results = learner.update(
        training_data=TrainingData(episodes=[windows]), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: 1}
    )
    return results[DEFAULT_MODULE_ID]


def module_of(learner: EfficientZeroLearner) -> Any:
    return learner.module[DEFAULT_MODULE_ID].unwrapped()


def state_of(learner: EfficientZeroLearner) -> dict[str, torch.Tensor]:
    """Weights, statistics and counters of all networks, and the optimizer's momentum."""
    state = dict(module_of(learner).state_dict())
    for index, (_, optimizer) in enumerate(learner.get_optimizers_for_module(DEFAULT_MODULE_ID)):
        for number, values in optimizer.state_dict()["state"].items():
            state |= {f"optimizer {index} {number} {key}": value for key, value in values.items()}
    return {key: value.clone() for key, value in state.items()}


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def spoilt(windows: Windows, part: str, bad: float = np.nan) -> Windows:
    """One number of one sample is not finite."""
    values = getattr(windows, part).copy()
    values[3, FRAME_STACK - 1] = bad
    return dataclasses.replace(windows, **{part: values})


# --- A good update ---------------------------------------------------------------------------------------------------


def test_an_update_changes_weights_statistics_and_the_counter_but_not_the_target() -> None:
    learner, replay = build(num_simulations=3), make_replay()
    update(learner, replay.sample(BATCH, beta=0.4))  # after this one no head is zero and all gradients flow
    before = state_of(learner)
    results = update(learner, replay.sample(BATCH, beta=0.4))
    after = state_of(learner)
    assert int(after["num_updates"]) == int(before["num_updates"]) + 1
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert all(f"network.{name}" in changed for name, _ in module_of(learner).network.named_parameters())
    assert {key for key in changed if key.startswith("consistency")}
    assert any("running_mean" in key for key in changed)
    assert not any(key.startswith("target_network") for key in changed)
    assert results[names.GRADIENT_NORM].peek() > 0


def test_priorities_come_back_with_their_positions() -> None:
    learner, replay = build(), make_replay()
    windows = replay.sample(BATCH, beta=0.4)
    pairs = update(learner, windows)[names.PRIORITIES]
    assert pairs[:, 0].tolist() == windows.position_ids.tolist()
    assert np.all(pairs[:, 1] > 0)
    replay.update_priorities(pairs[:, 0].astype(np.int64), pairs[:, 1])


def test_what_was_observed_of_several_updates_is_told_in_one_report() -> None:
    """As means of what would be told after each; but the priorities always are."""
    windows = [make_replay().sample(BATCH, beta=0.4) for _ in range(3)]

    def told(learner: EfficientZeroLearner, **options: Any) -> list[dict[str, Any]]:
        timesteps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: 1}
        return [
            learner.update(training_data=TrainingData(episodes=[batch]), timesteps=timesteps, **options)[
                DEFAULT_MODULE_ID
            ]
            for batch in windows
        ]

    learner = build()
    each_time, priorities = told(build()), told(learner, _no_metrics_reduce=True)
    for one, other in zip(each_time, priorities, strict=True):
        assert set(other) == {names.PRIORITIES}
        np.testing.assert_array_equal(one.pop(names.PRIORITIES), other[names.PRIORITIES])
    report = learner.report()[DEFAULT_MODULE_ID]
    assert report.keys() == each_time[2].keys()
    for name in (names.VALUE_LOSS, names.GRADIENT_NORM, names.LEARNING_RATE, names.TARGET_STALENESS):
        assert report[name].peek() == pytest.approx(np.mean([results[name].peek() for results in each_time])), name


def test_equal_learners_make_equal_updates() -> None:
    replay = make_replay(images=True)
    windows = [replay.sample(BATCH, beta=0.4) for _ in range(3)]
    states = []
    for _ in range(2):
        learner = build(images=True)
        for batch in windows:
            update(learner, batch)
        states.append(state_of(learner))
    assert_same(*states)


def test_a_recorded_step_learns_what_the_eager_one_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls for the recording leave no trace; bad updates are skipped."""
    recorder = FakeRecorder()
    monkeypatch.setattr(cuda_graphs, "record", recorder)
    eager, recorded = build(images=True, gpus=0), build(images=True, gpus=0)
    ((_, optimizer),) = recorded.get_optimizers_for_module(DEFAULT_MODULE_ID)
    eager_step = recorded._gradient_steps[DEFAULT_MODULE_ID]
    recorded._gradient_steps[DEFAULT_MODULE_ID] = GradientStep(
        eager_step._compute, optimizer, module_of(recorded), max_norm=eager_step._max_norm, recorded=True
    )
    replay = make_replay(images=True)
    for number in range(6):
        windows = replay.sample(BATCH, beta=0.4)
        if number == 4:
            windows = spoilt(windows, "rewards")
        for learner in (eager, recorded):
            update(learner, windows)
        assert_same(state_of(eager), state_of(recorded))
    assert recorder.launched == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("kind", "images", "is_fused"), [("sgd", True, False), ("adam", False, False), ("sgd", True, True)]
)
def test_a_gpu_learns_by_a_graph_what_it_learns_without(
    monkeypatch: pytest.MonkeyPatch, kind: str, images: bool, is_fused: bool
) -> None:
    if is_fused:
        monkeypatch.setattr(compilation, "MIN_PARAMETERS", 0)

    def run(**settings: Any) -> tuple[dict[str, torch.Tensor], list[float], EfficientZeroLearner]:
        # Fused kernels round to bfloat16 at other places, of which statistics tell after some updates.
        learner = build(images=images, optimizer={"type": kind}, lr=0.01, mixed_precision=not is_fused, **settings)
        replay, losses = make_replay(images=images), []
        for number in range(8):
            windows = replay.sample(BATCH, beta=0.4)
            results = update(learner, spoilt(windows, "rewards") if number == 5 else windows)
            losses.append(float(results["value_loss"].values[-1]))
        return state_of(learner), losses, learner

    graphed, graphed_losses, learner = run()
    eager, eager_losses, _ = run(compiled_learner=False)
    assert learner._gradient_steps[DEFAULT_MODULE_ID]._run._graphs
    assert getattr(module_of(learner)._unroll, "is_compiled", False) == is_fused
    np.testing.assert_allclose(graphed_losses, eager_losses, rtol=2e-2)
    assert graphed.keys() == eager.keys()
    for key, value in eager.items():
        torch.testing.assert_close(
            graphed[key], value, rtol=2e-2, atol=2e-2, msg=lambda text, key=key: f"{key}: {text}"
        )
    _, cpu_losses, _ = run(gpus=0)
    np.testing.assert_allclose(graphed_losses[:3], cpu_losses[:3], rtol=5e-2)


def test_what_acts_sees_every_step_of_a_fused_optimizer() -> None:
    learner, replay = build(), make_replay()
    first = next(module_of(learner).network.parameters())
    before = first._version
    update(learner, replay.sample(BATCH, beta=0.4))
    assert first._version > before


def test_the_loss_of_one_batch_falls() -> None:
    learner, replay = build(optimizer={"type": "adam"}, lr=0.01), make_replay()
    windows = replay.sample(BATCH, beta=0.4)
    histories: dict[str, list[float]] = {name: [] for name in ("value_loss", "value_prefix_loss", "consistency_loss")}
    for _ in range(60):
        results = update(learner, windows)
        for name, history in histories.items():
            history.append(float(results[name].values[-1]))
    for name, history in histories.items():
        assert history[-1] < history[0], name


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_the_optimizer_takes_all_parameters_in_one_pass(kind: str) -> None:
    learner = build(optimizer={"type": kind})
    ((_, optimizer),) = learner.get_optimizers_for_module(DEFAULT_MODULE_ID)
    assert all(group["fused"] for group in optimizer.param_groups)
    update(learner, make_replay().sample(BATCH, beta=0.4))
    assert int(module_of(learner).num_updates) == 1


# --- Updates that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "bad"), [("rewards", np.nan), ("rewards", np.inf), ("frames", np.nan), ("weights", np.nan)]
)
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(part: str, bad: float) -> None:
    learner, replay = build(), make_replay()
    for _ in range(2):
        update(learner, replay.sample(BATCH, beta=0.4))  # so that there is momentum
    windows = replay.sample(BATCH, beta=0.4)
    if part == "weights":
        weights = windows.weights.copy()
        weights[3] = bad
        bad_windows = dataclasses.replace(windows, weights=weights)
    else:
        bad_windows = spoilt(windows, part, bad)
    before = state_of(learner)
    results = update(learner, bad_windows)
    assert_same(before, state_of(learner))
    assert results[names.NUM_NON_FINITE_UPDATES_LIFETIME].peek() == 1

    # Nothing lingers: the next update equals that of a learner which never saw the bad batch.
    update(learner, windows)
    other, replay = build(), make_replay()
    for _ in range(3):
        update(other, replay.sample(BATCH, beta=0.4))
    assert_same(state_of(other), state_of(learner))


@pytest.mark.parametrize("part", ["rewards", "frames"])
def test_a_skipped_update_gives_the_replay_no_bad_priorities(part: str) -> None:
    learner, replay = build(), make_replay()
    update(learner, replay.sample(BATCH, beta=0.4))
    results = update(learner, spoilt(replay.sample(BATCH, beta=0.4), part))
    assert results[names.PRIORITIES].shape == (0, 2)


def test_the_algorithm_takes_a_skipped_update_in_its_stride() -> None:
    """`EfficientZero._update` and the replay between two learners' results, one of them skipped."""
    learner, replay = build(), make_replay()
    good = replay.sample(BATCH, beta=0.4)
    algorithm: Any = SimpleNamespace(
        learner_group=SimpleNamespace(
            update=lambda **options: [learner.update(**options) for _ in range(2)],
        ),
        metrics=SimpleNamespace(aggregate=lambda *args, **kwargs: None),
        num_interactions=1,
    )
    for windows, count in ((spoilt(good, "rewards"), 0), (good, 2 * BATCH)):
        position_ids, priorities = EfficientZero._update(algorithm, Batch(TrainingData(episodes=[windows])))
        assert (position_ids.shape, priorities.shape) == ((count,), (count,))
        replay.update_priorities(position_ids, priorities)


def test_ten_in_a_row_end_the_run_with_a_sentence() -> None:
    learner, replay = build(), make_replay()
    good = replay.sample(BATCH, beta=0.4)
    bad = spoilt(good, "rewards")
    for _ in range(9):
        update(learner, bad)
    update(learner, good)  # starts the count anew
    for _ in range(9):
        update(learner, bad)
    before = state_of(learner)
    with pytest.raises(
        DivergedError,
        match=r"diverged at update 1: .* not finite 10 times in a row; largest target_value showed it first: nan at "
        r"update 0.*\. .*Try a lower lr",
    ):
        update(learner, bad)
    assert_same(before, state_of(learner))


def test_how_many_in_a_row_is_configurable() -> None:
    learner, replay = build(max_consecutive_non_finite_updates=1), make_replay()
    with pytest.raises(DivergedError):
        update(learner, spoilt(replay.sample(BATCH, beta=0.4), "rewards"))


# --- Target network --------------------------------------------------------------------------------------------------


def test_the_target_network_is_copied_every_so_many_updates_and_rests_between() -> None:
    learner, replay = build(target_network_update_freq=3), make_replay()
    module = module_of(learner)
    target = {key: value.clone() for key, value in module.target_network.state_dict().items()}
    assert_same(target, dict(module.network.state_dict()))
    for number in range(1, 8):
        results = update(learner, replay.sample(BATCH, beta=0.4))
        assert not any(part.training for part in module.target_network.modules())
        if number % 3 == 0:
            target = {key: value.clone() for key, value in module.network.state_dict().items()}
        assert_same(target, dict(module.target_network.state_dict()))
        assert results[names.TARGET_STALENESS].values[-1] == number % 3
    assert not any(parameter.requires_grad for parameter in module.target_network.parameters())


def test_the_target_network_stays_in_eval_mode_whatever_rllib_switches() -> None:
    module = module_of(build())
    module.train()
    assert module.network.training
    assert not any(part.training for part in module.target_network.modules())
    frames = torch.rand(4, FRAME_STACK, 3, device=module.num_updates.device)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.forward_target({"obs": frames})
    module.forward_inference({"obs": frames})  # an acting forward must not move statistics either
    module.forward_exploration({"obs": frames})
    assert_same(before, dict(module.state_dict()))
    assert module.network.training


# --- Statistics of batch normalisation -------------------------------------------------------------------------------


def test_weights_leave_with_statistics_of_their_own() -> None:
    """Those of the batch learned from last, by the weights that came of it; running averages lag behind."""
    # In low precision the statistics would be those of rounded numbers.
    learner, replay = build(lr=0.1, use_consistency=False, mixed_precision=False), make_replay()
    for _ in range(3):
        windows = replay.sample(BATCH, beta=0.4)
        update(learner, windows)
    representation = module_of(learner).network.representation
    with torch.no_grad():
        root = torch.from_numpy(windows.frames[:, :FRAME_STACK]).flatten(1).to(learner._device)
        expected = copy.deepcopy(representation).layers[0](root).mean(dim=0)
    assert not torch.allclose(representation.layers[1].running_mean, expected, rtol=1e-3)
    learner.get_state(components="rl_module")
    torch.testing.assert_close(representation.layers[1].running_mean, expected)


def test_weights_that_leave_in_between_change_nothing_that_follows() -> None:
    left, stayed = build(), build()
    for windows in (make_replay().sample(BATCH, beta=0.4) for _ in range(3)):
        update(left, windows)
        update(stayed, windows)
        left.get_state()
    stayed.get_state()
    assert_same(state_of(left), state_of(stayed))


def test_weights_copied_within_a_process_are_those_that_would_have_travelled() -> None:
    learner, replay = build(), make_replay()
    update(learner, replay.sample(BATCH, beta=0.4))
    travelled, copied = (copy.deepcopy(module_of(build())) for _ in range(2))
    for module in (travelled, copied):
        del module.target_network, module.consistency  # as in an EnvRunner
    env_runner = SimpleNamespace(module=copied, _weights_seq_no=0)
    learner.copy_weights_to(env_runner)
    state = learner.get_state(components="rl_module", inference_only=True)
    travelled.set_state(state["rl_module"][DEFAULT_MODULE_ID])
    acting = {key: value.clone() for key, value in copied.state_dict().items()}
    assert_same(dict(travelled.state_dict()), acting)
    assert env_runner._weights_seq_no == state["weights_seq_no"] > 0
    # A snapshot: what is learned next does not reach it.
    update(learner, replay.sample(BATCH, beta=0.4))
    assert_same(acting, dict(copied.state_dict()))


def test_a_state_that_is_gone_back_to_knows_nothing_of_what_came_after() -> None:
    learner, replay = build(images=True), make_replay(images=True)
    update(learner, replay.sample(BATCH, beta=0.4))
    earlier = copy.deepcopy(learner.get_state())
    before = state_of(learner)
    update(learner, replay.sample(BATCH, beta=0.4))
    learner._weights_seq_no = 0  # as an Algorithm that goes back does it
    learner.set_state(earlier)
    learner.get_state()  # Statistics are fitted to the weights before these leave.
    assert_same(state_of(learner), before)


def test_a_batch_that_is_not_finite_leaves_no_statistics() -> None:
    learner, replay = build(), make_replay()
    update(learner, replay.sample(BATCH, beta=0.4))
    update(learner, spoilt(replay.sample(BATCH, beta=0.4), "frames"))
    learner.get_state()
    assert all(torch.isfinite(value).all() for value in state_of(learner).values())


# --- Learning rate ---------------------------------------------------------------------------------------------------


def test_the_learning_rate_follows_the_updates_made() -> None:
    learner = build(lr=0.2, lr_warmup_updates=4, lr_decay_rate=0.5, lr_decay_updates=3)
    replay = make_replay()
    rates = []
    for _ in range(9):
        results = update(learner, replay.sample(BATCH, beta=0.4))
        rates.append(results[names.LEARNING_RATE].values[-1])
        ((_, optimizer),) = learner.get_optimizers_for_module(DEFAULT_MODULE_ID)
        assert optimizer.param_groups[0]["lr"] == rates[-1]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.1, 0.1])


def test_a_skipped_update_does_not_advance_the_learning_rate() -> None:
    learner, replay = build(lr=0.2, lr_warmup_updates=4), make_replay()
    windows = replay.sample(BATCH, beta=0.4)
    update(learner, windows)
    update(learner, spoilt(windows, "rewards"))
    results = update(learner, windows)
    assert results[names.LEARNING_RATE].values[-1] == pytest.approx(0.05)


def test_gradients_are_clipped_by_their_global_norm() -> None:
    norms = []
    for grad_clip in (None, 0.01):
        learner = build(lr=1.0, grad_clip=grad_clip, optimizer={"type": "sgd"})
        before = [p.detach().clone() for p in module_of(learner).network.parameters()]
        before += [p.detach().clone() for p in module_of(learner).consistency.parameters()]
        results = update(learner, make_replay().sample(BATCH, beta=0.4))
        after = [*module_of(learner).network.parameters(), *module_of(learner).consistency.parameters()]
        step = torch.cat([(new - old).flatten() for new, old in zip(after, before, strict=True)]).norm().item()
        norms.append((results[names.GRADIENT_NORM].values[-1], step))
    (true_norm, whole_step), (logged, clipped_step) = norms
    assert whole_step == pytest.approx(float(true_norm), rel=1e-4)
    assert float(logged) == pytest.approx(float(true_norm), rel=1e-5)  # before clipping
    assert clipped_step == pytest.approx(0.01, rel=1e-3)


# --- Switches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("switch", ["use_consistency", "use_value_prefix", "use_augmentation"])
def test_each_ingredient_can_be_switched_off(switch: str, images: bool) -> None:
    learner, replay = build(images=images, **{switch: False}), make_replay(images=images)
    results = update(learner, replay.sample(BATCH, beta=0.4))
    assert int(module_of(learner).num_updates) == 1
    assert ("consistency_loss" in results) == (switch != "use_consistency")
    assert (module_of(learner).consistency is None) == (switch == "use_consistency")
    horizon = module_of(learner).search_config.value_prefix_horizon
    assert horizon == (1 if switch == "use_value_prefix" else 5)
    # One that has no gradient would end a run of several Learners, which wait for everyone's.
    parameters = module_of(learner).named_parameters()
    assert [name for name, parameter in parameters if parameter.requires_grad and parameter.grad is None] == []


def forward_inputs(windows: Windows, **settings: Any) -> dict[str, torch.Tensor]:
    """What the representation network is given in training, on the CPU."""
    # A GPU would round it, and see it several times: to record an update takes more than one.
    learner = build(mixed_precision=False, compiled_learner=False, **settings)
    seen: list[torch.Tensor] = []
    module_of(learner).network.representation.register_forward_pre_hook(
        lambda _, inputs: seen.append(as_planes(inputs[0]).to("cpu", copy=True))
    )
    update(learner, windows)
    return dict(zip(("root", "following")[: len(seen)], seen, strict=True))


def as_planes(given: torch.Tensor) -> torch.Tensor:
    """`[B, S, H, W]` of what a GPU is given for images: pairs of columns, filled up; see `PlaneLayout`."""
    if given.ndim == 2 or given.device.type == "cpu":
        return given
    columns = given.permute(0, 2, 3, 1).reshape(len(given), given.shape[2], -1, given.shape[1] // 2)
    planes = columns.permute(0, 3, 1, 2)
    inside = planes[:, :FRAME_STACK, :, 1 : given.shape[2] + 1]  # images are as wide as high
    assert inside.abs().sum() == planes.abs().sum()
    return inside


@pytest.mark.parametrize("use_consistency", [True, False])
def test_augmentation_is_independent_of_consistency(use_consistency: bool) -> None:
    windows = make_replay(images=True).sample(BATCH, beta=0.4)
    frames = torch.from_numpy(windows.frames).permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 255.0
    plain = forward_inputs(windows, images=True, use_consistency=use_consistency, use_augmentation=False)
    torch.testing.assert_close(plain["root"], frames[:, :FRAME_STACK])
    augmented = forward_inputs(windows, images=True, use_consistency=use_consistency)
    assert ("following" in plain) == ("following" in augmented) == use_consistency
    assert not torch.allclose(augmented["root"], plain["root"])
    if use_consistency:
        # Target k is the stack of time k, k = 1 .. K; they come step after step.
        stacks = torch.cat([frames[:, k : k + FRAME_STACK] for k in range(1, 6)])
        torch.testing.assert_close(plain["following"], stacks)
        assert not torch.allclose(augmented["following"], stacks)
        # One shift and one intensity for all following frames of a sample: what two stacks share is equal in both.
        following = augmented["following"].unflatten(0, (5, BATCH)).transpose(0, 1)
        torch.testing.assert_close(following[:, :-1, 1], following[:, 1:, 0])


def test_vectors_are_never_augmented() -> None:
    windows = make_replay().sample(BATCH, beta=0.4)
    inputs = forward_inputs(windows, use_augmentation=True)
    expected = torch.from_numpy(windows.frames[:, :FRAME_STACK]).flatten(1)
    torch.testing.assert_close(inputs["root"], expected)


def test_value_prefix_targets_follow_the_switch() -> None:
    windows = make_replay().sample(BATCH, beta=0.4)
    for switch, expected in ((True, np.cumsum(windows.rewards[:, :5], axis=1)), (False, windows.rewards[:, :5])):
        learner = build(use_value_prefix=switch)
        batch = learner._learner_connector(
            rl_module=learner.module, batch={}, episodes=[windows], shared_data={}, metrics=None
        )
        found = batch[DEFAULT_MODULE_ID]["target_value_prefix"].cpu().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_target_network_makes_the_targets() -> None:
    windows = make_replay().sample(BATCH, beta=0.4)
    learner = build()

    def target_values() -> torch.Tensor:
        arguments = {"rl_module": learner.module, "batch": {}, "episodes": [windows], "shared_data": {}}
        return learner._learner_connector(**arguments)[DEFAULT_MODULE_ID]["target_value"]

    module = module_of(learner)
    before = target_values()
    with torch.no_grad():
        module.network.prediction.value[-1].bias[0] += 5.0
    assert torch.equal(target_values(), before)
    module.target_network = copy.deepcopy(module.network).eval()
    assert not torch.equal(target_values(), before)


def test_targets_beyond_the_support_are_counted_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    learner, windows = build(), make_replay().sample(BATCH, beta=0.4)
    assert update(learner, windows)[names.SATURATED_TARGETS].peek() == 0
    assert "beyond what its networks can express" not in caplog.text
    # support_size 5 ends at 34.8.
    huge = dataclasses.replace(windows, rewards=np.where(windows.rewards != 0, 1e6, 0).astype(np.float32))
    for _ in range(2):
        share = update(learner, huge)[names.SATURATED_TARGETS].peek()
    assert 0.5 < share <= 1
    assert caplog.text.count("beyond what its networks can express") == 1
    assert torch.isfinite(torch.cat([p.flatten() for p in module_of(learner).parameters()])).all()
