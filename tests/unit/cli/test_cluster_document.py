"""docs/cluster.md: its settings are valid, its clusters are what Ray expects, and its commands exist."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
from typing import Any

import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from typer.testing import CliRunner

from rllib_efficientzero.cli.main import app

ROOT = pathlib.Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "cluster.md").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
BLOCKS: list[dict[str, Any]] = [
    yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)
]
SETTINGS = [block["config"] for block in BLOCKS if "config" in block]
(CLUSTER,) = [block for block in BLOCKS if "cluster_name" in block]
(JOB,) = [block for block in BLOCKS if block.get("kind") == "RayJob"]


def is_valid(config: dict[str, Any], directory: pathlib.Path, command: str = "rllib train file x.yaml") -> None:
    """A command that trains by a file is understood where the file has these settings."""
    file = directory / "x.yaml"
    file.write_text(json.dumps({"x": {"run": "EfficientZero", "env": "CartPole-v1", "config": config}}))
    program, *arguments = shlex.split(command)
    assert program == "rllib"
    arguments = [str(file) if argument.endswith(".yaml") else argument for argument in arguments]
    result = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("config", SETTINGS, ids=["every process", "one GPU"])
def test_settings_are_valid(config: dict[str, Any], tmp_path: pathlib.Path) -> None:
    ray.shutdown()  # in a session of other tests, its own resources would decide
    is_valid(config, tmp_path)


def test_ray_accepts_the_description_of_the_cluster() -> None:
    filled = prepare_config(CLUSTER)
    validate_config(filled)
    assert filled["available_node_types"]["runners"]["min_workers"] == 2
    # What Ray's schema lets pass.
    assert CLUSTER["head_node_type"] in CLUSTER["available_node_types"]


def test_it_is_the_version_of_ray_that_is_tested_with() -> None:
    (version,) = re.findall(r"^ray(?:\[.*\])?==(\S+)", CONSTRAINTS, flags=re.MULTILINE)
    assert CLUSTER["docker"]["image"].startswith(f"rayproject/ray:{version}-")
    assert JOB["spec"]["rayClusterSpec"]["rayVersion"] == version


def test_the_job_mounts_what_it_declares() -> None:
    spec = JOB["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
    assert len({group["template"]["spec"]["containers"][0]["image"] for group in groups}) == 1, "one version everywhere"


def test_commands_are_understood(tmp_path: pathlib.Path) -> None:
    (on_the_cluster,) = re.findall(r"ray exec \S+ \"RAY_AUTH_MODE=token (.*?)\"", TEXT)
    for command in (on_the_cluster, JOB["spec"]["entrypoint"]):
        is_valid({}, tmp_path, command)
