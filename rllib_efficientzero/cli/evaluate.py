"""`rllib evaluate`: the scores of a checkpoint, a video of it, and the trees behind its decisions."""

from __future__ import annotations

import itertools
import json
import pathlib
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rllib_efficientzero.cli.checkpoints import CHECKPOINT_HELP, Networks, loading_explained, one_trial
from rllib_efficientzero.cli.console import StatusLine, say, say_warning
from rllib_efficientzero.cli.environments import cannot_be_played
from rllib_efficientzero.cli.errors import InputError, exit_codes
from rllib_efficientzero.cli.old_options import OldEvaluateOptions
from rllib_efficientzero.cli.options import takes_options
from rllib_efficientzero.cli.outputs import check_writable
from rllib_efficientzero.cli.overrides import parse_json_option

if TYPE_CHECKING:
    from rllib_efficientzero.playing import Episode, Moment
    from rllib_efficientzero.policy import Policy

DEFAULT_TREE = "tree.html"
ONLY_EFFICIENTZERO = ("num_simulations", "num_envs", "device", "networks", "video", "fps", "tree")
"""Options that mean nothing to policies of other algorithms, which RLlib plays itself."""


@takes_options(OldEvaluateOptions)
def evaluate(
    context: typer.Context,
    checkpoint: Annotated[pathlib.Path, typer.Argument(help=CHECKPOINT_HELP)],
    options: OldEvaluateOptions,
    episodes: Annotated[int, typer.Option("--episodes", min=1, help="Episodes to play to their end.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first episode; the others follow it.")] = 0,
    num_simulations: Annotated[
        int | None,
        typer.Option("--num-simulations", min=0, max=10_000, help="In place of the trained ones; 0: without search."),
    ] = None,
    num_envs: Annotated[int, typer.Option("--num-envs", min=1, max=512, help="Episodes played at once.")] = 8,
    env: Annotated[str | None, typer.Option("--env", "-e", help="Environment in place of the checkpoint's.")] = None,
    env_config: Annotated[
        str, typer.Option("--env-config", metavar="JSON", help="Settings over those of the checkpoint's environment.")
    ] = "{}",
    device: Annotated[str, typer.Option("--device", help="'cpu' or 'cuda'.")] = "cpu",
    networks: Networks = None,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="Write scores as JSON; '-': to stdout, and nothing else."),
    ] = None,
    video: Annotated[
        pathlib.Path | None,
        typer.Option("--video", metavar="MP4", help="Record the first episode with what the search thought of it."),
    ] = None,
    fps: Annotated[float, typer.Option("--fps", min=0.1, help="Decisions per second of the video.")] = 15.0,
    tree: Annotated[
        str | None,
        typer.Option("--tree", metavar="step=N[:FILE]", help="Draw the search of this step of the first episode."),
    ] = None,
    trust_checkpoint: Annotated[
        bool, typer.Option("--trust-checkpoint", help="Load the checkpoint of any algorithm of RLlib (pickles).")
    ] = False,
) -> None:
    """Play episodes with a trained policy and report every score.

    EfficientZero's checkpoints need not be trusted, and Ray is not started. Those of other algorithms are pickles and
    need --trust-checkpoint; RLlib plays them, without --num-simulations, --num-envs, --device, --networks, --video
    and --tree.

    One thread computes, unless OMP_NUM_THREADS says otherwise.

    FILE of --tree ends in .html or .svg (default: tree.html).

    Exit codes: 0 done; 2 wrong input, among it a step of --tree that the first episode did not reach, which is said
    once the scores are written.
    """
    with exit_codes():
        options.warn()
        settings = parse_json_option(env_config, "--env-config")
        checkpoint = one_trial(checkpoint)
        if not _is_efficientzeros(checkpoint):
            meaningless = [name for name in ONLY_EFFICIENTZERO if _is_given(context, name)]
            newest = max(checkpoint.glob("checkpoint_*"), default=checkpoint)
            _evaluate_with_rllib(newest, trust_checkpoint, meaningless, episodes, seed, env, settings, out)
            return
        step, tree_file = parse_tree_option(tree)
        policy, path = load_or_explain(checkpoint, device, networks)
        _check_files(out, video, tree_file)
        with _watching(video, fps, step, tree_file, quiet=out == "-") as watch:
            report = play(
                policy,
                episodes=episodes,
                seed=seed,
                num_envs=1 if video or tree else min(num_envs, episodes),
                env=env,
                env_config=settings,
                num_simulations=num_simulations,
                on_decision=watch,
                on_episode=None if out == "-" else _say_episode,
            )
            # Within the block, which raises at its end if no tree was drawn: the scores are written all the same.
            write_report({"checkpoint": str(path), **report}, out)


def load_or_explain(
    checkpoint: pathlib.Path, device: str = "cpu", networks: str | None = None
) -> tuple[Policy, pathlib.Path]:
    """Loads the policy of a checkpoint, or of a trial's newest one, and returns it with its path; need not be trusted.

    Reads only the policy of a checkpoint, not the gigabytes of its replay.

    Raises:
        InputError: see `loading_explained`.
    """
    from rllib_efficientzero.checkpoint.policy_files import POLICY_FILES, newest_policy
    from rllib_efficientzero.policy import load_policy

    with loading_explained(device):
        path = newest_policy(checkpoint, below=POLICY_FILES, warn=say_warning)
        return load_policy(path, device=device, networks=networks), path


def parse_tree_option(text: str | None) -> tuple[int, pathlib.Path | None]:
    """`step=N[:FILE]` -> N and the file, which is None without the option.

    Raises:
        InputError: it is something else.
    """
    if text is None:
        return 0, None
    match = re.fullmatch(r"step=(\d{1,9})(?::(.+))?", text)
    if match is None:
        raise InputError(f"must be 'step=N' or 'step=N:FILE', not {text!r}", "--tree")
    file = pathlib.Path(match[2] or DEFAULT_TREE)
    if file.suffix not in {".html", ".svg"}:
        raise InputError(f"the tree is drawn as .html or .svg, not {file.suffix!r}", "--tree")
    return int(match[1]), file


def play(
    policy: Policy,
    *,
    episodes: int,
    seed: int,
    num_envs: int,
    env: str | None,
    env_config: dict[str, Any],
    num_simulations: int | None,
    on_decision: Any = None,
    on_episode: Any = None,
) -> dict[str, Any]:
    """Plays `episodes` episodes, with seeds from `seed` on, and returns their scores as JSON-able data.

    Raises:
        InputError: the environment cannot be played here.
    """
    from rllib_efficientzero.checkpoint.manifest import versions
    from rllib_efficientzero.playing import PlayError, make_environment, play_episodes
    from rllib_efficientzero.threads import one_thread_unless_told

    envs = []
    started = time.perf_counter()
    played: dict[int, Episode] = {}
    status, num_decisions = StatusLine(), itertools.count(1)

    def decide(moment: Moment) -> None:
        status.show(f"{len(played)} of {episodes} episodes, {next(num_decisions):,} decisions")
        if on_decision:
            on_decision(moment)

    try:
        envs = [make_environment(policy, env=env, env_config=env_config) for _ in range(num_envs)]
        seeds = list(range(seed, seed + episodes))
        with one_thread_unless_told():
            found = play_episodes(policy, envs, seeds, num_simulations=num_simulations, on_decision=decide)
            for index, episode in found:
                played[index] = episode
                status.clear()
                if on_episode:
                    on_episode(index, episode)
    except PlayError as error:
        raise cannot_be_played(error, env) from error
    finally:
        status.clear()
        for made in envs:
            made.close()
    protocol = policy.description.get("protocol", {})
    name = env or protocol.get("env")
    simulations = policy.search_config.num_simulations if num_simulations is None else num_simulations
    return {
        "env": name,
        "env_config": env_config,
        "num_simulations": simulations,
        "num_envs": num_envs,
        "num_updates": policy.description.get("num_updates"),
        "protocol": protocol.get("evaluation") if env is None else None,
        "seconds": round(time.perf_counter() - started, 3),
        "versions": versions(),
        "episodes": [
            {"seed": e.seed, "return": e.episode_return, "length": e.length, "terminated": e.terminated}
            for _, e in sorted(played.items())
        ],
    }


def write_report(report: dict[str, Any], out: str | None) -> None:
    """Adds mean, spread and human-normalised score; prints them, or writes the JSON."""
    import numpy as np

    from rllib_efficientzero.scores import human_normalised

    returns = np.array([episode["return"] for episode in report["episodes"]])
    report |= {
        "return_mean": float(returns.mean()),
        "return_std": float(returns.std()),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "human_normalised": human_normalised(str(report["env"]), float(returns.mean())),
    }
    if report.get("env_config"):
        report["human_normalised"] = None  # With other settings it is another benchmark.
    text = json.dumps(report, indent=1)
    if out == "-":
        sys.stdout.write(text + "\n")
        return
    summary = f"return {report['return_mean']:.4g} ± {report['return_std']:.3g} over {len(returns)} episodes"
    if report["human_normalised"] is not None:
        summary += f" (human-normalised {report['human_normalised']:.3f})"
    say(summary, "bold")
    if out is not None:
        try:
            pathlib.Path(out).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", f"--out {out}") from error
        say(f"scores {out}")


def _check_files(out: str | None, video: pathlib.Path | None = None, tree_file: pathlib.Path | None = None) -> None:
    """Refuses output files that cannot be written, before time is spent on playing."""
    if video is not None and video.suffix != ".mp4":
        raise InputError(f"the video is an .mp4, not {video.suffix!r}", "--video")
    check_writable(None if out in (None, "-") else pathlib.Path(str(out)), "--out")
    check_writable(video, "--video")
    check_writable(tree_file, "--tree")


def _say_episode(index: int, episode: Episode) -> None:
    say(f"Episode #{index + 1}: reward: {episode.episode_return:g}  length {episode.length}  seed {episode.seed}")


@contextmanager
def _watching(
    video: pathlib.Path | None, fps: float, step: int, tree_file: pathlib.Path | None, *, quiet: bool
) -> Iterator[Any]:
    """Yields a callback for every decision, which records the first episode and draws one of its trees, or None."""
    if video is None and tree_file is None:
        yield None
        return
    from rllib_efficientzero.playing.video import VideoRecorder

    recorder = None if video is None else VideoRecorder(video, fps)
    drawn = []

    def watch(moment: Moment) -> None:
        if moment.episode != 0:
            return
        if recorder is not None:
            recorder.add(moment)
        if tree_file is not None and moment.step == step:
            _draw_tree(moment, tree_file)
            drawn.append(step)

    try:
        yield watch
    finally:
        if recorder is not None:
            recorder.close()
    if recorder is not None and not quiet:
        say(f"video {video} ({recorder.num_frames} frames)")
    if tree_file is not None and not drawn:
        raise InputError(f"no tree was drawn: the first episode ended before step {step}", "--tree")
    if tree_file is not None and not quiet:
        say(f"tree {tree_file}")


def _draw_tree(moment: Moment, file: pathlib.Path) -> None:
    from rllib_efficientzero.playing import SearchTree
    from rllib_efficientzero.playing.environment import names_at
    from rllib_efficientzero.playing.tree_drawing import tree_html, tree_svg

    if not moment.result.visit_counts.any():
        raise InputError("there is no tree without a search: --num-simulations must not be 0", "--tree")
    tree = SearchTree.of_last_search(moment.policy, moment.row, int(moment.result.index[moment.row]))
    names = names_at(moment.env, moment.result, moment.row)
    draw = tree_svg if file.suffix == ".svg" else tree_html
    try:
        file.write_text(draw(tree, names, f"Search at step {moment.step}"), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", f"--tree {file}") from error


def _is_efficientzeros(path: pathlib.Path) -> bool:
    """Whether a policy, a checkpoint or a trial, whole or not, is EfficientZero's."""
    of_trial = any(path.glob("checkpoint_*/policy"))
    return of_trial or (path / "policy").is_dir() or (path / "policy.json").is_file()


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line, even if with its default value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _evaluate_with_rllib(
    checkpoint: pathlib.Path,
    trusted: bool,
    meaningless: list[str],
    episodes: int,
    seed: int,
    env: str | None,
    env_config: dict[str, Any],
    out: str | None,
) -> None:
    """Evaluates a checkpoint of any algorithm through RLlib, and reports its scores."""
    if not checkpoint.is_dir():
        raise InputError(f"there is no checkpoint directory {str(checkpoint)!r}")
    from rllib_efficientzero.checkpoint.manifest import RLLIB_MARK

    if not (checkpoint / RLLIB_MARK).is_file():
        raise InputError(f"{checkpoint} holds neither a policy of EfficientZero nor a checkpoint of RLlib")
    if not trusted:
        raise InputError(
            f"{checkpoint} has no policy.json; RLlib's own checkpoints are pickles, which run code when they are "
            "loaded; if you trust this one, add --trust-checkpoint"
        )
    if meaningless:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in meaningless)
        raise InputError("only for EfficientZero's policies; RLlib plays those of other algorithms", options)
    _check_files(out)
    from rllib_efficientzero.cli.ray_session import set_verbosity

    set_verbosity(0)
    from rllib_efficientzero.cli.evaluate_rllib import evaluate_algorithm

    report = evaluate_algorithm(checkpoint, episodes=episodes, seed=seed, env=env, env_config=env_config)
    if out != "-":
        for index, episode in enumerate(report["episodes"]):
            say(f"Episode #{index + 1}: reward: {episode['return']:g}  length {episode['length']}")
    write_report({"checkpoint": str(checkpoint), **report}, out)
