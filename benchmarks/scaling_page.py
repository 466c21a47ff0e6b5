"""Puts a result of `benchmarks.scaling` into the tables of docs/scaling.md.

    python -m benchmarks.scaling_page [RESULT.json] [--page FILE]

Each table of the page is between `<!-- name -->` and `<!-- end -->`; the text around the tables stays as it is.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import report as reports

PAGE = reports.ROOT / "docs" / "scaling.md"
ROW_OF_SERVICES = (
    ("a step of self-play with its search", "play_step", None, "EnvRunner"),
    ("asking an EnvRunner and taking its answer", "request", None, "driver"),
    ("storing a step", "add_step", None, "driver"),
    ("drawing {batch} windows", "sample", None, "driver"),
    ("a batch through shared memory", "transfer", None, "driver, actors"),
    ("targets of a batch", "reanalyze_fixed", "reanalyze_per_window", "Learner, or reanalyze actor"),
    ("gradient step", "learn_fixed", "learn_per_window", "Learner"),
    ("sum of gradients of two Learners (gloo)", "reduce_gradients", None, "Learners"),
    ("priorities of a batch", "priorities", None, "driver"),
    ("publishing weights", "publish", None, "driver"),
)


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def conditions(result: dict[str, Any]) -> str:
    """A line that says where and when the result was measured."""
    found = result["conditions"]
    commit = found["commit"].split()[0][:10]
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['time'][:16]}, commit {commit}, ray {found['ray']}, torch "
        f"{found['torch']}; load when it began: {found['load_average_before']}."
    )


def runners(result: dict[str, Any]) -> str:
    """The table of self-play alone and, if they were timed, of whole runs beside the predictions for them."""
    head = ["EnvRunners", "self-play alone, env steps/s", "CPU time of the EnvRunners per step", "cores they used"]
    rows = {
        number: [
            number,
            f"{row['env_steps_per_s']:.0f}",
            f"{row['cpu_ms_per_step']:.2f} ms",
            f"{row['cores_used_by_runners']:.2f}",
        ]
        for number, row in result["measured_runners"].items()
    }
    if whole_runs := result.get("measured_training"):
        head += ["a whole run, env steps/s", "predicted of it"]
        for number, row in whole_runs.items():
            rows[number] += [f"{row['env_steps_per_s']:.1f}", f"{row['predicted_env_steps_per_s']:.1f}"]
    return table(head, rows.values())


def services(result: dict[str, Any]) -> str:
    """The table of the time of every service alone."""
    times, batch = result["service_s"], result["pipeline"]["batch"]

    def told(fixed: str, per_window: str | None) -> str:
        base = f"{1000 * times[fixed]:.3g} ms"
        return base if per_window is None else f"{base} + {1000 * times[per_window]:.3g} ms per window"

    rows = [[what.format(batch=batch), told(*keys), where] for what, *keys, where in ROW_OF_SERVICES]
    return table(["service", "time", "where"], rows)


def predictions(result: dict[str, Any]) -> str:
    """The table of environment steps per second by the numbers of EnvRunners and Learners."""
    rates = {(row["runners"], row["learners"]): row["env_steps_per_s"] for row in result["predicted"]}
    num_learners = sorted({learners for _, learners in rates})
    rows = []
    for row in result["predicted_self_play"]:
        learned = [f"{rates[row['runners'], learners]:,.0f}" for learners in num_learners]
        rows.append([f"{row['runners']}", *learned, f"{row['env_steps_per_s']:,.0f}, limited by {row['limited_by']}"])
    heads = [f"{learners} Learner{'s' if learners > 1 else ''}" for learners in num_learners]
    return table(["EnvRunners", *heads, "nothing learned"], rows)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "conditions": conditions,
    "runners": runners,
    "services": services,
    "predictions": predictions,
}


def fill(page: str, result: dict[str, Any]) -> str:
    """Returns the page with its tables replaced by those of a result."""
    for name, render in TABLES.items():
        pattern = re.compile(rf"(<!-- {name} -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)
        content = render(result)
        page, count = pattern.subn(lambda found, content=content: found[1] + content + found[2], page)
        if count != 1:
            raise ValueError(f"the page has {count} places for {name!r}, not one")
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, nargs="?", default=reports.RESULTS / "scaling.json")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    arguments.page.write_text(fill(arguments.page.read_text(), json.loads(arguments.result.read_text())))


if __name__ == "__main__":
    main()
