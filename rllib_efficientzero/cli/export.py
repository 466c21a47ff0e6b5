"""`rllib export`: copies a policy out of its checkpoint, for uses that only act."""

from __future__ import annotations

import pathlib
import shutil
from typing import Annotated

import typer

from rllib_efficientzero.cli.checkpoints import CHECKPOINT_HELP, Networks, one_trial
from rllib_efficientzero.cli.console import say
from rllib_efficientzero.cli.errors import InputError, exit_codes
from rllib_efficientzero.cli.evaluate import load_or_explain


def export(
    checkpoint: Annotated[pathlib.Path, typer.Argument(help=CHECKPOINT_HELP)],
    directory: Annotated[pathlib.Path, typer.Argument(help="Where to; made if needed.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also the three networks as ONNX (needs the extra [onnx]).")
    ] = False,
    networks: Networks = None,
) -> None:
    """Write policy.json and policy.safetensors, which are all that acting needs; no pickle among them."""
    with exit_codes():
        policy, path = load_or_explain(one_trial(checkpoint), networks=networks)
        from rllib_efficientzero.checkpoint.policy_files import DESCRIPTION, WEIGHTS, read_description

        files = read_description(path)
        if directory.resolve() == files.path.parent.resolve():
            raise InputError("is where the policy is already", str(directory))
        try:
            directory.mkdir(parents=True, exist_ok=True)
            # The weights first: a description without them would be a damaged policy.
            shutil.copyfile(files.weights_path, directory / WEIGHTS)
            shutil.copyfile(files.path, directory / DESCRIPTION)
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", str(directory)) from error
        written = [directory / DESCRIPTION, directory / WEIGHTS]
        if onnx:
            from rllib_efficientzero.onnx_export import OnnxMissingError, export_onnx

            try:
                written += export_onnx(policy, directory)
            except OnnxMissingError as error:
                raise InputError(str(error), "--onnx") from error
        for file in written:
            say(f"{file}  {file.stat().st_size:,} bytes")
