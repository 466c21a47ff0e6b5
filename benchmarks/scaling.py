"""The speedup by more processes: measured with one and two EnvRunners, predicted by simulation for more.

    python -m benchmarks.scaling [--example NAME] [--seconds N] [--out FILE] [--predict RESULT.json]

Every service of the pipeline is timed alone, as the best of several repetitions: on a CPU in CPU time of its thread,
communication between processes in wall time. `benchmarks.pipeline` then simulates the whole with any number of
processes, as if each had its own core (and each Learner and reanalyze actor its own device). Whole runs with one and
two EnvRunners are timed, too, and compared with the predictions for them. `--predict` takes the measurements from an
earlier result, for instance of a machine with a GPU. `python -m benchmarks.scaling_page` puts a result into
docs/scaling.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from benchmarks import report as reports
from benchmarks.loop import load_config
from benchmarks.pipeline import Pipeline, ServiceTimes, Simulation
from rllib_efficientzero.env.sampling import take_sample

NUM_RUNNERS, NUM_LEARNERS = (1, 2, 8, 64, 512), (1, 2, 4, 8)
REANALYZE_ACTORS_PER_LEARNER = 4
REPETITIONS = 7
SIMULATED_STEPS, ANSWERS_EACH = 100_000, 50


# --- Measuring -------------------------------------------------------------------------------------------------------


def search_from_the_start(runner: Any) -> None:
    """Makes an EnvRunner search from its first step: with untrained weights it would act at random."""
    runner.module.num_updates.fill_(1)


def best(work: Callable[[], object], clock: Callable[[], float], repetitions: int = REPETITIONS) -> float:
    """Seconds of the fastest repetition; the first one is not counted."""
    seconds = []
    for _ in range(repetitions + 1):
        start = clock()
        work()
        seconds.append(clock() - start)
    return min(seconds[1:])


def measure_runners(example: str, num_runners: int, seconds: float) -> dict[str, float]:
    """Environment steps per second of self-play alone, and CPU seconds of a runner's process per step."""
    algo = load_config(example, {"num_env_runners": num_runners, "num_gpus_per_learner": 0}).build_algo()
    group = algo.env_runner_group
    group.foreach_env_runner(search_from_the_start, local_env_runner=False)
    num_steps = algo.config.rollout_fragment_length * algo.config.num_envs()
    algo._sample(num_steps)

    def cpu_seconds() -> float:
        return sum(group.foreach_env_runner(lambda runner: time.process_time(), local_env_runner=False))

    before, cpu_before, started = algo.num_interactions, cpu_seconds(), time.perf_counter()
    while time.perf_counter() - started < seconds:
        algo._sample(num_steps)
    elapsed, cpu, steps = time.perf_counter() - started, cpu_seconds() - cpu_before, algo.num_interactions - before
    algo.stop()
    return {
        "env_steps_per_s": round(steps / elapsed, 2),
        "cpu_ms_per_step": round(1000 * cpu / steps, 3),
        "cores_used_by_runners": round(cpu / elapsed, 2),
    }


def measure_training(example: str, num_runners: int, seconds: float) -> dict[str, float]:
    """Environment steps and updates per second of a run with asynchronous self-play and one Learner that reanalyzes."""
    settings = {"num_env_runners": num_runners, "sample_asynchronously": True, "num_gpus_per_learner": 0}
    algo = load_config(example, settings | {"num_steps_sampled_before_learning_starts": 200}).build_algo()
    while algo.num_updates == 0 or algo._updates_owed() >= 1:  # until self-play searches and all due updates are made
        algo.train()
    steps, updates, started = algo.num_interactions, algo.num_updates, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        algo.train()
    steps, updates = algo.num_interactions - steps, algo.num_updates - updates
    algo.stop()
    return {"env_steps_per_s": round(steps / elapsed, 2), "updates_per_s": round(updates / elapsed, 3)}


def measure_services(example: str) -> ServiceTimes:
    """Times every service alone, in this process and on its device."""
    algo = load_config(example, {"replay_ratio": 0.0}).build_algo()
    config, learner, replay = algo.config, algo.learner_group._learner, algo.local_replay_buffer
    on_gpu = learner.device.type == "cuda"

    def clock() -> float:
        if not on_gpu:
            return time.thread_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    batch = config.total_train_batch_size
    num_steps = config.rollout_fragment_length * config.num_envs()
    while len(replay) < 2 * batch:  # acts at random, as nothing has been learned
        replay.add(algo._sample(num_steps))
    runner = algo.env_runner_group.local_env_runner
    search_from_the_start(runner)
    play_step = best(lambda: take_sample(runner, num_timesteps=num_steps), clock) / num_steps
    episodes = take_sample(runner, num_timesteps=num_steps).episodes
    add_step = best(lambda: replay.add(episodes), clock) / num_steps

    whole, part = replay.sample(batch, beta=1.0), replay.sample(max(8, batch // 4), beta=1.0)
    reanalyze = {len(windows): best(lambda w=windows: _reanalyze(learner, w), clock) for windows in (whole, part)}
    learn = {len(windows): best(_learning(learner, windows), clock) for windows in (whole, part)}
    reanalyze_fixed, reanalyze_per_window = _line(reanalyze)
    learn_fixed, learn_per_window = _line(learn)
    ids, priorities = whole.position_ids, whole.weights
    num_parameters = sum(parameter.numel() for parameter in learner.module[DEFAULT_MODULE_ID].parameters())
    times = ServiceTimes(
        play_step=play_step,
        request=_request_seconds(),
        add_step=add_step,
        sample=best(lambda: replay.sample(batch, beta=1.0), clock),
        transfer=best(lambda: ray.put(whole), time.perf_counter),
        reanalyze_fixed=reanalyze_fixed,
        reanalyze_per_window=reanalyze_per_window,
        learn_fixed=learn_fixed,
        learn_per_window=learn_per_window,
        reduce_gradients=_reduce_seconds(num_parameters),
        priorities=best(lambda: replay.update_priorities(ids, priorities), clock),
        publish=best(lambda: ray.put(algo.learner_group.get_state(inference_only=True)), clock),
    )
    algo.stop()
    return times


def _reanalyze(learner: Any, windows: Any) -> dict[str, Any]:
    return learner._learner_connector(
        rl_module=learner.module, batch={}, episodes=[windows], shared_data={}, metrics=learner.metrics
    )


def _learning(learner: Any, windows: Any) -> Callable[[], object]:
    """Returns a function that makes a gradient step, on targets that are computed beforehand."""
    batch = SampleBatch(_reanalyze(learner, windows)[DEFAULT_MODULE_ID])
    data = MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=len(windows))
    return lambda: learner.update(training_data=TrainingData(batch=data), timesteps={})


def _line(seconds: dict[int, float]) -> tuple[float, float]:
    """Fits a fixed time and a time per window through two points, so that neither is negative."""
    (large, slow), (small, fast) = sorted(seconds.items(), reverse=True)
    per_window = min(max(0.0, (slow - fast) / (large - small)), slow / large)
    return slow - large * per_window, per_window


@ray.remote(num_cpus=0)
class _Echo:
    def answer(self, given: Any) -> Any:
        return given

    def reduce(self, address: str, rank: int, count: int) -> float:
        """Seconds that gloo takes to sum `count` numbers over two processes."""
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
        numbers = torch.zeros(count)
        return best(lambda: torch.distributed.all_reduce(numbers), time.perf_counter)


def _request_seconds() -> float:
    """Seconds of a call of another process, including its answer."""
    echo = _Echo.remote()
    seconds = best(lambda: ray.get(echo.answer.remote(1)), time.perf_counter, repetitions=200)
    ray.kill(echo)
    return seconds


def _reduce_seconds(count: int) -> float:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    pair = [_Echo.remote() for _ in range(2)]
    seconds = max(ray.get([echo.reduce.remote(address, rank, count) for rank, echo in enumerate(pair)]))
    for echo in pair:
        ray.kill(echo)
    return seconds


# --- Predicting ------------------------------------------------------------------------------------------------------


def predict(times: ServiceTimes, base: Pipeline) -> list[dict[str, Any]]:
    """Predicts a row per number of EnvRunners and Learners, with asynchronous self-play and reanalyze actors."""
    rows = []
    for num_learners in NUM_LEARNERS:
        for num_runners in NUM_RUNNERS:
            pipeline = dataclasses.replace(
                base,
                num_runners=num_runners,
                num_learners=num_learners,
                num_reanalyze_actors=REANALYZE_ACTORS_PER_LEARNER * num_learners,
                asynchronous=True,
            )
            outcome = Simulation(times, pipeline).run(SIMULATED_STEPS)
            rows.append(
                {
                    "runners": num_runners,
                    "learners": num_learners,
                    "reanalyze_actors": pipeline.num_reanalyze_actors,
                    "env_steps_per_s": round(outcome.steps_per_s, 1),
                    "limited_by": outcome.limited_by,
                    **{key: round(value, 3) for key, value in dataclasses.asdict(outcome).items() if "busy" in key},
                }
            )
    return rows


def predict_self_play(times: ServiceTimes, base: Pipeline) -> list[dict[str, Any]]:
    """Predicts a row per number of EnvRunners for self-play without learning."""
    rows = []
    for num_runners in NUM_RUNNERS:
        pipeline = dataclasses.replace(base, num_runners=num_runners, replay_ratio=0.0, asynchronous=True)
        outcome = Simulation(times, pipeline).run(ANSWERS_EACH * pipeline.fragment * num_runners)
        rate, limit = round(outcome.steps_per_s, 1), outcome.limited_by
        rows.append({"runners": num_runners, "env_steps_per_s": rate, "limited_by": limit})
    return rows


def compare(times: ServiceTimes, base: Pipeline, measured: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Measured whole runs by the number of EnvRunners, each with the simulation's prediction for it."""
    rows = {}
    for num_runners, row in measured.items():
        pipeline = dataclasses.replace(base, num_runners=int(num_runners), asynchronous=True)
        predicted = Simulation(times, pipeline).run(SIMULATED_STEPS).steps_per_s
        rows[num_runners] = row | {"predicted_env_steps_per_s": round(predicted, 2)}
    return rows


def base_pipeline(example: str) -> Pipeline:
    """A pipeline with one process of each kind and the example's settings."""
    config = load_config(example, {})
    return Pipeline(
        num_runners=1,
        fragment=config.rollout_fragment_length * config.num_envs_per_env_runner,
        batch=config.total_train_batch_size,
        replay_ratio=config.replay_ratio,
        self_play_update_freq=config.self_play_update_freq,
    )


def summarise(result: dict[str, Any]) -> dict[str, str]:
    """The lines of the table of `python -m benchmarks`."""
    lines = {
        f"{number} EnvRunners, measured": f"{row['env_steps_per_s']} env steps/s of self-play alone"
        for number, row in result["measured_runners"].items()
    }
    for number, row in result["measured_training"].items():
        told = f"{row['env_steps_per_s']} env steps/s, predicted {row['predicted_env_steps_per_s']}"
        lines[f"{number} EnvRunners, a whole run"] = told
    for row in result["predicted"]:
        if row["runners"] in (8, 512):
            name = f"{row['runners']} EnvRunners, {row['learners']} Learners, predicted"
            lines[name] = f"{row['env_steps_per_s']} env steps/s, limited by {row['limited_by']}"
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--example", default="pong-ez-cpu")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement with EnvRunners")
    parser.add_argument("--predict", type=Path, help="take the services from this result")
    parser.add_argument("--out", type=Path, default=reports.RESULTS / "scaling.json")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"conditions": reports.conditions("ray", "torch"), "example": arguments.example}
    if arguments.predict is None:
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
        for name, measure in (("measured_runners", measure_runners), ("measured_training", measure_training)):
            result[name] = {str(number): measure(arguments.example, number, arguments.seconds) for number in (1, 2)}
        times = measure_services(arguments.example)
        ray.shutdown()
    else:
        earlier = json.loads(arguments.predict.read_text())
        result |= {key: earlier[key] for key in ("conditions", "measured_runners")}
        result["measured_training"] = earlier.get("measured_training", {})
        times = ServiceTimes(**earlier["service_s"])
    result["service_s"] = dataclasses.asdict(times)
    base = base_pipeline(arguments.example)
    result["measured_training"] = compare(times, base, result["measured_training"])
    result["pipeline"] = dataclasses.asdict(base)
    result["predicted"] = predict(times, base)
    result["predicted_self_play"] = predict_self_play(times, base)
    result[reports.SUMMARY] = summarise(result)
    reports.write(arguments.out, result)
    for what, figure in result[reports.SUMMARY].items():
        print(f"{what}: {figure}")


if __name__ == "__main__":
    main()
