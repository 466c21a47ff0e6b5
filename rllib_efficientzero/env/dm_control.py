"""The DeepMind Control Suite as in DMControl 100k: `DmcProtocol` has all settings, `make_dmc` makes an environment.

Each action of the agent is repeated over `action_repeat` steps of the suite; the benchmark counts the suite's steps as
environment steps. Rewards are summed, and not clipped. Only the last of the repeated steps is rendered. The suite's own
time limit (1000 steps) truncates an episode, as its last observation is no terminal state; the few tasks that terminate
signal it by a discount of 0.

Continuous actions are discretised: each dimension has `bins_per_dimension` equally spaced values, whose combinations
are the discrete actions (as in the paper, so that its search needs no change).
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_efficientzero.env.atari import package_versions
from rllib_efficientzero.env.rendering import HEADLESS, choose_renderer, load_triton_first
from rllib_efficientzero.env.spaces import MAX_JOINT_ACTIONS

PREFIX = "dmc/"
STATE_SUFFIX = "-state"
ACTION_REPEATS = {"cartpole": 8, "reacher": 4, "ball_in_cup": 4, "cheetah": 4, "finger": 2, "walker": 2}
"""Suite steps per decision by domain, as in PlaNet and CURL, with which the paper compares; 2 in other domains."""
CAMERAS = {"quadruped": 2}
"""Camera ids of domains whose first camera does not show enough."""
EXTRA = "rllib_efficientzero[dmc]"
NO_BACKEND = "off"
"""dm_control's name of the backend when rendering is disabled."""


def is_dmc_id(env: str) -> bool:
    """Whether `env` names a task of the suite: `dmc/cartpole-swingup`, or `dmc/cartpole-swingup-state`."""
    return env.startswith(PREFIX)


@dataclasses.dataclass(frozen=True)
class DmcProtocol:
    """How a task is played: the settings that two returns must share to be comparable.

    Example:
        >>> DmcProtocol("dmc/cartpole-swingup").action_repeat
        8
        >>> DmcProtocol("reacher-easy-state").from_pixels
        False
    """

    task: str
    """`cartpole-swingup`, with `dmc/` before it and `-state` after it if wanted"""
    from_pixels: bool | None = None
    """True: images u8`[image_size, image_size, 3]`; False: the suite's own observations as one vector. By default True
    unless the task's name ends in -state"""
    action_repeat: int | None = None
    """steps per decision; by default `ACTION_REPEATS`"""
    bins_per_dimension: int | None = 5
    """values of each action dimension; None: actions stay continuous"""
    image_size: int = 96
    """pixels"""
    camera: int | None = None
    """by default `CAMERAS`, else 0"""
    render_quality: str = "full"
    """"full": as the suite renders; "fast": without shadows and anti-aliasing, which looks different and, without a
    GPU, takes a fifth of the time"""

    def __post_init__(self) -> None:
        name = self.task.removeprefix(PREFIX)
        task = name.removesuffix(STATE_SUFFIX)
        domain = task.partition("-")[0]
        defaults = {
            "task": task,
            "from_pixels": task == name if self.from_pixels is None else self.from_pixels,
            "action_repeat": ACTION_REPEATS.get(domain, 2) if self.action_repeat is None else self.action_repeat,
            "camera": CAMERAS.get(domain, 0) if self.camera is None else self.camera,
        }
        for key, value in defaults.items():
            object.__setattr__(self, key, value)
        self._check()

    def _check(self) -> None:
        for key, smallest in (("action_repeat", 1), ("bins_per_dimension", 2), ("image_size", 8), ("camera", -1)):
            value = getattr(self, key)
            if value is None and key == "bins_per_dimension":
                continue
            if type(value) is not int or value < smallest:
                raise ValueError(
                    f"DMControl setting {key} must be a whole number of at least {smallest}, not {value!r}."
                )
        if not isinstance(self.from_pixels, bool):
            raise ValueError(f"DMControl setting from_pixels must be True or False, not {self.from_pixels!r}.")
        if self.render_quality not in ("full", "fast"):
            raise ValueError(f"DMControl setting render_quality must be 'full' or 'fast', not {self.render_quality!r}.")

    @classmethod
    def from_config(cls, env_config: Mapping[str, Any]) -> DmcProtocol:
        """The protocol of an RLlib `env_config`, whose keys are this class's fields.

        Raises:
            ValueError: a key is unknown (the message names the nearest), or has a bad value.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in env_config:
            if key not in known:
                nearest = difflib.get_close_matches(str(key), known, n=1, cutoff=0.4)
                hint = f'did you mean "{nearest[0]}"?' if nearest else f"known are {', '.join(known)}."
                raise ValueError(f'Unknown DMControl setting "{key}" in env_config: {hint}')
        return cls(**env_config)

    @property
    def steps_per_decision(self) -> int:
        """Steps of the suite per decision."""
        return self.action_repeat or 1

    @property
    def evaluation_settings(self) -> dict[str, Any]:
        """Settings that differ in evaluation: none."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Everything that a return depends on, versions included; for printing and for saving with results."""
        return {
            **dataclasses.asdict(self),
            "env_id": f"{PREFIX}{self.task}",
            "observation_shape": [self.image_size, self.image_size, 3] if self.from_pixels else None,
            "versions": package_versions("dm_control", "mujoco", "gymnasium"),
        }


def make_dmc(env_config: Mapping[str, Any]) -> gym.Env:
    """A task of the suite that follows `DmcProtocol.from_config(env_config)`.

    Args:
        env_config: for example `{"task": "dmc/cartpole-swingup"}`.

    Returns:
        An environment with observations u8`[96, 96, 3]` or f32`[D]`, and `Discrete` actions (`Box(-1, 1, [D])` if
        `bins_per_dimension` is None).

    Raises:
        ValueError: see `DmcProtocol.from_config`; or the suite has no such task; or its binned actions are too many.
        ImportError: dm_control is not installed, or does not work with the mujoco that is.
        RenderingError: images are asked for, and neither EGL nor OSMesa works here.
    """
    protocol = DmcProtocol.from_config(env_config)
    env = DmcEnv(protocol)
    return BinnedActions(env, protocol.bins_per_dimension) if protocol.bins_per_dimension else env


class DmcEnv(gym.Env):
    """A task of the suite with actions `Box(-1, 1, [D])`; see `DmcProtocol`."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's form

    def __init__(self, protocol: DmcProtocol) -> None:
        self.protocol = protocol
        self.render_mode = "rgb_array"
        self._load(None)
        spec = self._env.action_spec()
        self._lowest, self._highest = spec.minimum.astype(np.float64), spec.maximum.astype(np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, spec.shape, np.float32)
        if protocol.from_pixels:
            shape = (protocol.image_size, protocol.image_size, 3)
            self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        else:
            size = sum(math.prod(part.shape) for part in self._env.observation_spec().values())
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    def _load(self, seed: int | None) -> None:
        suite = _import_suite(self.protocol.from_pixels is True)
        domain, _, task = self.protocol.task.partition("-")
        if (domain, task) not in suite.ALL_TASKS:
            raise ValueError(_unknown_task(self.protocol.task, ["-".join(pair) for pair in suite.ALL_TASKS]))
        # Tasks get their random generator when they are made; some even build their model with it.
        self._env = suite.load(domain, task, task_kwargs={"random": seed})
        self._camera: Any = None
        # As small as the image: MuJoCo clears and averages the whole offscreen buffer, whatever part is read.
        buffer = self._env.physics.model.vis.global_
        buffer.offwidth = buffer.offheight = self.protocol.image_size
        if self.protocol.render_quality == "fast":
            quality = self._env.physics.model.vis.quality
            quality.offsamples, quality.shadowsize = 0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins an episode; a seed makes the task anew, with that seed."""
        super().reset(seed=seed)
        if seed is not None:
            self.close()
            self._load(seed)
        return self._observe(self._env.reset()), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One decision: `action` f32`[D]` over `action_repeat` steps, or until the episode ends."""
        scaled = self._lowest + (np.asarray(action, np.float64) + 1.0) * 0.5 * (self._highest - self._lowest)
        reward = 0.0
        for _ in range(self.protocol.steps_per_decision):
            time_step = self._env.step(scaled)
            reward += time_step.reward or 0.0
            if time_step.last():
                break
        ended = time_step.last()
        terminated = bool(ended and time_step.discount == 0.0)
        return self._observe(time_step), reward, terminated, ended and not terminated, {}

    def _observe(self, time_step: Any) -> np.ndarray:
        if self.protocol.from_pixels:
            return self.render()
        parts = [np.ravel(part) for part in time_step.observation.values()]
        return np.concatenate(parts).astype(np.float32)

    def render(self) -> np.ndarray:
        """The current state as u8`[image_size, image_size, 3]`."""
        if self._camera is None:
            # Kept between images: making a camera and its scene takes a tenth of the time of rendering.
            from dm_control.mujoco.engine import Camera

            size = self.protocol.image_size
            self._camera = Camera(self._env.physics, size, size, camera_id=self.protocol.camera)
        return self._camera.render().copy()  # the next image overwrites the camera's buffer

    def close(self) -> None:
        """Frees the simulation and its rendering context."""
        self._camera = None
        self._env.close()


class BinnedActions(gym.ActionWrapper):
    """Bounded continuous actions cut into `bins_per_dimension` equally spaced values per dimension, both ends included.

    Discrete action i stands for a combination of values; the last dimension changes fastest.
    """

    def __init__(self, env: gym.Env, bins_per_dimension: int) -> None:
        """Raises ValueError if the actions are not a bounded Box `[D]`, or their combinations too many to search."""
        super().__init__(env)
        space = env.action_space
        if not (isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and space.is_bounded()):
            raise ValueError(f"only bounded Box actions of one axis can be cut into bins, not {space}.")
        dimensions = space.shape[0]
        if bins_per_dimension**dimensions > MAX_JOINT_ACTIONS:
            most = math.floor(MAX_JOINT_ACTIONS ** (1 / dimensions) + 1e-9)
            cure = f"bins_per_dimension can be {most} here" if most >= 2 else "they are too many to be cut at all"
            raise ValueError(
                f"{bins_per_dimension} bins in each of {dimensions} action dimensions make "
                f"{bins_per_dimension**dimensions:,} actions, more than {MAX_JOINT_ACTIONS}; {cure}."
            )
        values = np.linspace(space.low, space.high, bins_per_dimension, axis=-1)  # [D, bins]
        self.actions = np.stack(np.meshgrid(*values, indexing="ij"), axis=-1).reshape(-1, dimensions)
        self.actions = self.actions.astype(space.dtype)
        """`[A, D]`, what each discrete action stands for"""
        self.action_space = gym.spaces.Discrete(len(self.actions))

    def action(self, action: Any) -> np.ndarray:
        """Returns the combination that a discrete action stands for."""
        return self.actions[int(action)]


def task_problem(env: str) -> str | None:
    """Why there is no task of this name, in one sentence; None if there is."""
    try:
        suite = _import_suite(with_images=False)
    except ImportError as error:
        return str(error)
    task = DmcProtocol(env).task
    known = ["-".join(pair) for pair in suite.ALL_TASKS]
    return None if task in known else _unknown_task(task, known)


def _unknown_task(task: str, known: list[str]) -> str:
    """One sentence with the nearest names."""
    nearest = difflib.get_close_matches(task, known, n=3, cutoff=0.5)
    same_domain = [name for name in known if name.partition("-")[0] == task.partition("-")[0]]
    names = list(dict.fromkeys([*nearest, *same_domain])) or known
    return f"the suite has no task {task!r}; there are {', '.join(PREFIX + name for name in names)}."


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables within the block only: processes started later must not inherit them, as they choose their own."""
    before = {name: os.environ[name] for name in variables.keys() & os.environ.keys()}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


def _import_suite(with_images: bool) -> Any:
    """Imports dm_control's suite, with a renderer that works."""
    load_triton_first()
    backend = getattr(sys.modules.get("dm_control._render"), "BACKEND", None)
    is_settled = backend in HEADLESS or (backend == NO_BACKEND and not with_images)
    variables = {}
    if "MUJOCO_GL" not in os.environ and not is_settled:
        # RLlib imports parts of dm_control by itself. dm_control may have chosen a renderer that needs a screen then,
        # or found none: its modules are dropped and imported again with a renderer chosen here.
        variables = dict.fromkeys(("MUJOCO_GL", "PYOPENGL_PLATFORM"), choose_renderer(required=with_images))
        for name in [name for name in sys.modules if name.partition(".")[0] in ("dm_control", "OpenGL")]:
            del sys.modules[name]
    try:
        with _environment(variables):
            from dm_control import suite
    except ModuleNotFoundError as error:
        raise ImportError(f"DMControl needs dm_control, which is not installed: run pip install '{EXTRA}'.") from error
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ImportError(
            f"dm_control cannot be imported with this mujoco (4.0 breaks dm_control 1.0.50: pip install 'mujoco<4') or "
            f"this renderer (MUJOCO_GL={os.environ.get('MUJOCO_GL')}): {error}"
        ) from error
    return suite
