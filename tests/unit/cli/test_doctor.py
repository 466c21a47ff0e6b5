"""What `rllib doctor` says of packages that are not there."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from typing import Any

import pytest

from rllib_efficientzero.cli import doctor
from rllib_efficientzero.env import rendering


@pytest.mark.parametrize(
    ("absent", "status", "words"),
    [
        ((), "ok", "MuJoCo draws with egl"),
        (("dm_control",), "missing", "egl is there to draw with; DMControl's images need dm_control too"),
        (("mujoco", "dm_control"), "missing", "images need mujoco and dm_control too"),
    ],
)
def test_nothing_draws_without_mujoco(
    absent: tuple[str, ...], status: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "choose_renderer", lambda required: "egl")
    here = {"mujoco", "dm_control"} - set(absent)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in here else None)
    (finding,) = doctor._rendering()
    assert (finding.name, finding.status) == ("rendering", status)
    assert words in finding.text


def test_optional_packages_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without(name: str) -> str:
        if name in ("minigrid", "py-spy"):
            raise metadata.PackageNotFoundError(name)
        return version("ray") if name == "ray" else "1"

    monkeypatch.setattr(metadata, "version", without)
    found: dict[str, Any] = {finding.name: finding for finding in doctor._packages()}
    assert found["minigrid"].text == "optional: pip install 'rllib_efficientzero[minigrid]'"
    assert found["ray[serve]"].text == "optional: pip install 'rllib_efficientzero[serve-ray]'", "it needs py-spy"
    assert found["mujoco"].status == found["ray"].status == "ok"


def test_an_extra_is_there_if_all_is_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "2.60.0")
    assert doctor._version("ray[serve]") == "2.60.0"
