"""Options of `rllib train`, with and without a file, including those of the old command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from rllib_efficientzero.cli.console import say_warning
from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.cli.experiment import Overrides, checkpoint_score
from rllib_efficientzero.cli.overrides import parse_json_option
from rllib_efficientzero.cli.ray_session import RayOptions

RAY = "Ray"
CHECKPOINTS = "Checkpoints"
WANDB = "Weights & Biases"


@dataclass(frozen=True)
class TrainOptions:
    """The options as they were given."""

    stop: Annotated[
        str, typer.Option("--stop", "-s", metavar="JSON", help="Stop criteria (over a file's): metric -> threshold.")
    ] = "{}"
    config: Annotated[
        str, typer.Option("--config", "-c", metavar="JSON", help="Config keys (merged over a file's).")
    ] = "{}"
    env: Annotated[str | None, typer.Option("--env", "-e", help="Environment (in place of a file's).")] = None
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed (in place of a file's).")] = None
    storage_path: Annotated[
        str | None,
        typer.Option(
            "--storage-path", metavar="DIR", help="Where results go: DIR/EXPERIMENT. (default: ~/ray_results)"
        ),
    ] = None
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="How trials compete: fifo, asha, median, pbt.")
    ] = None
    scheduler_config: Annotated[
        str, typer.Option("--scheduler-config", metavar="JSON", help="Settings of --scheduler.")
    ] = "{}"
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoints of the same command's last run.")
    ] = False
    trust_checkpoint: Annotated[
        bool, typer.Option("--trust-checkpoint", help="Load checkpoints that are not the experiment's own (pickles).")
    ] = False
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would run (config, resources, protocol); start nothing.")
    ] = False
    checkpoint_freq: Annotated[
        int | None,
        typer.Option(
            min=0, help="Iterations between checkpoints; 0: none before the end.", rich_help_panel=CHECKPOINTS
        ),
    ] = None
    checkpoint_at_end: Annotated[
        bool | None,
        typer.Option(help="A checkpoint after the last iteration. (default: yes)", rich_help_panel=CHECKPOINTS),
    ] = None
    keep_checkpoints_num: Annotated[
        int | None, typer.Option(min=1, help="Keep so many checkpoints. (default: all)", rich_help_panel=CHECKPOINTS)
    ] = None
    checkpoint_score_attr: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC",
            help="Keep those with the best METRIC; min-METRIC: the least.",
            rich_help_panel=CHECKPOINTS,
        ),
    ] = None
    wandb_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Log there, with this API key.", rich_help_panel=WANDB)
    ] = None
    wandb_project: Annotated[str | None, typer.Option(help="Log there, to this project.", rich_help_panel=WANDB)] = None
    wandb_run_name: Annotated[
        str | None, typer.Option(help="Log there, as a run of this name.", rich_help_panel=WANDB)
    ] = None
    ray_address: Annotated[
        str | None, typer.Option(help="Train on this running cluster ('auto', host:port).", rich_help_panel=RAY)
    ] = None
    ray_num_cpus: Annotated[int | None, typer.Option(min=1, help="CPUs of a local ray.", rich_help_panel=RAY)] = None
    ray_num_gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of a local ray.", rich_help_panel=RAY)] = None
    ray_object_store_memory: Annotated[
        int | None, typer.Option(min=1, metavar="BYTES", help="Object store of a local ray.", rich_help_panel=RAY)
    ] = None
    ray_ui: Annotated[bool, typer.Option("--ray-ui", help="Start ray's dashboard.", rich_help_panel=RAY)] = False
    local_mode: Annotated[
        bool,
        typer.Option("--local-mode", help="Sample, learn and evaluate in one process, to debug.", rich_help_panel=RAY),
    ] = False
    verbose: Annotated[
        int, typer.Option("--verbose", "-v", count=True, help="-v: RLlib's and Tune's messages; -vv: all of them.")
    ] = 0
    log_info: Annotated[bool, typer.Option("--log-info", hidden=True)] = False
    log_debug: Annotated[bool, typer.Option("--log-debug", hidden=True)] = False
    framework: Annotated[str | None, typer.Option(hidden=True)] = None
    trace: Annotated[bool, typer.Option("--trace", hidden=True)] = False
    ray_num_nodes: Annotated[int | None, typer.Option(hidden=True)] = None

    @property
    def verbosity(self) -> int:
        """0 to 2."""
        return max(min(self.verbose, 2), int(self.log_info), 2 * int(self.log_debug))

    def warn_of_old_ones(self) -> None:
        """Warns of given options of the old command that have no meaning any more.

        Raises:
            InputError: one of them would have changed what runs.
        """
        if self.framework not in (None, "torch"):
            raise InputError(f"RLlib's algorithms are written in torch today, not {self.framework!r}", "--framework")
        if self.ray_num_nodes is not None:
            raise InputError(
                "start a cluster of your own (docs/cluster.md) and name it by --ray-address", "--ray-num-nodes"
            )
        for name in ("framework", "trace"):
            if getattr(self, name):
                say_warning(f"--{name} is not needed any more")

    def overrides(self) -> Overrides:
        """Returns what the options override in every experiment.

        Raises:
            InputError: one is no JSON object.
        """
        config: dict[str, Any] = parse_json_option(self.config, "--config")
        if self.verbosity:
            config.setdefault("log_level", "INFO" if self.verbosity == 1 else "DEBUG")
        return Overrides(
            config=config,
            stop=parse_json_option(self.stop, "--stop"),
            env=self.env,
            storage_path=self.storage_path,
            checkpoint=self._checkpoint(),
            seed=self.seed,
            local_mode=self.local_mode,
            scheduler=self._scheduler(),
            loggers=self._loggers(),
        )

    def ray(self) -> RayOptions:
        """Returns the options for `ray.init`, and the verbosity."""
        return RayOptions(
            self.ray_address,
            self.ray_num_cpus,
            self.ray_num_gpus,
            self.verbosity,
            dashboard=self.ray_ui,
            object_store_memory=self.ray_object_store_memory,
        )

    def _checkpoint(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "checkpoint_frequency": self.checkpoint_freq,
            "checkpoint_at_end": self.checkpoint_at_end,
            "num_to_keep": self.keep_checkpoints_num,
        }
        settings.update(checkpoint_score(self.checkpoint_score_attr))
        return {key: value for key, value in settings.items() if value is not None}

    def _scheduler(self) -> dict[str, Any] | None:
        settings = parse_json_option(self.scheduler_config, "--scheduler-config")
        if self.scheduler is None and settings:
            raise InputError("name the scheduler by --scheduler", "--scheduler-config")
        return None if self.scheduler is None else {**settings, "name": self.scheduler}

    def _loggers(self) -> list[Any]:
        given = {"api_key": self.wandb_key, "project": self.wandb_project, "name": self.wandb_run_name}
        settings = {key: value for key, value in given.items() if value is not None}
        return [{"wandb": settings}] if settings else []
