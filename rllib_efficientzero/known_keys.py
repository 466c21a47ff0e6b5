"""The config keys, groups and types of every algorithm, available without importing ray.

`known_keys.json` is generated from the `AlgorithmConfig` classes by `python -m rllib_efficientzero.known_keys
--write`. A test checks that it is up to date. For algorithms that are not in it (a user's own class), the same
functions read the keys from the class at run time.
"""

from __future__ import annotations

import argparse
import inspect
import json
import pathlib
import sys
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any

from rllib_efficientzero.config_schema import KeySchema

FILE = pathlib.Path(__file__).with_name("known_keys.json")
BASE = "AlgorithmConfig"
GROUPS = (
    *("python_environment", "resources", "framework", "api_stack", "environment", "env_runners", "learners"),
    *("training", "callbacks", "evaluation", "offline_data", "multi_agent", "reporting", "checkpointing"),
    *("debugging", "fault_tolerance", "rl_module", "experimental", "reanalyze"),
)
"""The methods of `AlgorithmConfig` that set keys."""

_LEGACY_KEYS = {
    # `AlgorithmConfig.to_dict` still writes these under the names of the old API stack.
    "callbacks_class": "callbacks",
    "custom_evaluation_function": "custom_eval_function",
    "input_": "input",
    "lambda_": "lambda",
    # Arguments whose attribute has another name.
    "custom_stats_cls_lookup": "stats_cls_lookup",
    "dataset_num_iters_per_offline_eval_runner": "dataset_num_iters_per_eval_runner",
    "optimization_config": "optimization",
    "num_actors": "num_reanalyze_actors",
    "num_gpus_per_actor": "num_gpus_per_reanalyze_actor",
    "num_cpus_per_actor": "num_cpus_per_reanalyze_actor",
    "prefetch": "reanalyze_prefetch",
    "timeout_s": "reanalyze_timeout_s",
}
# Keys for which RLlib's annotations are narrower than the types that its code accepts.
_WIDER_TYPES = {
    "entropy_coeff": "float|list",
    "input": "any",
    "num_cpus_for_main_process": "float|int",
    "num_cpus_per_env_runner": "float|int",
    "num_cpus_per_offline_eval_runner": "float|int",
    "num_gpus_per_offline_eval_runner": "float|int",
}
# Arguments that always raise, without being marked as deprecated.
_DEAD_ARGUMENTS = {"create_env_on_local_worker"}
_TOKENS: dict[Any, str] = {int: "int", float: "float", bool: "bool", str: "str", type: "class", Any: "any"}


@cache
def load() -> dict[str, KeySchema]:
    """Algorithm -> its keys, from the generated file."""
    content = json.loads(FILE.read_text())
    algorithms = content["algorithms"]
    base = algorithms[BASE]
    return {
        name: KeySchema(
            types={**base["types"], **own["types"]},
            groups={**base["groups"], **own["groups"]},
            attributes={**base["attributes"], **own["attributes"]},
        )
        for name, own in algorithms.items()
    }


def algorithm_names() -> list[str]:
    """The values that `run:` may have."""
    return [name for name in load() if name != BASE]


def schema_of(config: Any) -> KeySchema:
    """The keys of an `AlgorithmConfig` object, from its attributes and the signatures of its methods."""
    defaults = {key: value for key, value in config.to_dict().items() if not _is_deprecated(value)}
    key_types = {key: _default_type(value) for key, value in defaults.items()}
    groups: dict[str, list[str]] = {}
    attributes: dict[str, str] = {}
    for group in GROUPS:
        if not callable(getattr(config, group, None)):
            continue
        arguments = _arguments(config, group)
        groups[group] = sorted(arguments)
        for name, annotation in arguments.items():
            key = _key_of(name, config, defaults)
            if key != name:
                attributes[name] = key
            key_types[key] = _union(key_types.get(key), _annotated_type(annotation))
    key_types.update({key: wider for key, wider in _WIDER_TYPES.items() if key in key_types})
    if "lambda" in key_types:
        attributes["lambda_"] = "lambda"
    return KeySchema(types=dict(sorted(key_types.items())), groups=groups, attributes=dict(sorted(attributes.items())))


def _arguments(config: Any, group: str) -> dict[str, Any]:
    """Argument -> annotation of a config method, its overrides included, deprecated ones left out."""
    arguments: dict[str, Any] = {}
    for cls in type(config).__mro__:
        method = cls.__dict__.get(group)
        if method is None:
            continue
        hints = _type_hints(method)
        for name, parameter in inspect.signature(method).parameters.items():
            variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            if name not in {"self", *_DEAD_ARGUMENTS} and not variadic and not _is_deprecated(parameter.default):
                arguments.setdefault(name, hints.get(name, Any))
    return arguments


def _type_hints(method: Callable[..., Any]) -> dict[str, Any]:
    """A method's annotations; Any where they cannot be evaluated without importing more."""
    try:
        return typing.get_type_hints(method)
    except (NameError, TypeError):
        raw = inspect.get_annotations(method)
        return {name: hint for name, hint in raw.items() if not isinstance(hint, str)}


def _is_deprecated(value: Any) -> bool:
    from ray._common.deprecation import DEPRECATED_VALUE

    return isinstance(value, int) and not isinstance(value, bool) and value == DEPRECATED_VALUE


def _key_of(argument: str, config: Any, defaults: dict[str, Any]) -> str:
    """The key with which `update_from_dict` has the same effect as the method's argument."""
    attribute = getattr(type(config), argument, None)
    if argument in _LEGACY_KEYS:
        return _LEGACY_KEYS[argument]
    if argument in defaults or (isinstance(attribute, property) and attribute.fset is not None):
        return argument
    candidates = [f"_{argument}", f"callbacks_{argument}"]
    for key in candidates:
        if key in defaults:
            return key
    raise LookupError(f"{type(config).__name__}: no config key for the argument {argument!r}; add it to _LEGACY_KEYS")


def _default_type(value: Any) -> str:
    """The type of a default value; empty for None, which says nothing."""
    if value is None:
        return ""
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain.__name__
    if isinstance(value, dict):
        return "dict"
    if isinstance(value, list | tuple):
        return "list"
    return "class" if isinstance(value, type) or callable(value) else "any"


def _annotated_type(annotation: Any) -> str:
    """The simple types an annotation allows, joined by "|"; "any" if one of them is not simple."""
    origin = typing.get_origin(annotation)
    if annotation is None or annotation is type(None):
        return ""
    if annotation in _TOKENS:
        return _TOKENS[annotation]
    if origin in (typing.Union, types.UnionType):
        return _union(*(_annotated_type(argument) for argument in typing.get_args(annotation)))
    if origin is typing.Literal:
        return _union(*(_default_type(value) for value in typing.get_args(annotation)))
    if origin in (Callable, type):
        return "class"
    container = origin or annotation
    if isinstance(container, type):
        if issubclass(container, typing.Mapping):
            return "dict"
        if issubclass(container, typing.Collection):
            return "list"
    return "any"


def _union(*parts: str | None) -> str:
    """`int`, `float|int` -> `float|int`; anything with "any" is "any", and so is nothing at all."""
    names = {name for part in parts if part for name in part.split("|")}
    return "any" if "any" in names else "|".join(sorted(names))


def generate() -> dict[str, Any]:
    """The content of `known_keys.json`; each algorithm holds what differs from the base class."""
    import ray
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from ray.rllib.algorithms.registry import ALGORITHMS

    configs = {name: load_class()[1] for name, load_class in sorted(ALGORITHMS.items())}
    configs.update(_own_configs())
    base = _as_json(schema_of(AlgorithmConfig()))
    algorithms = {BASE: base}
    for name, config in configs.items():
        own = _as_json(schema_of(config))
        algorithms[name] = {
            part: {key: value for key, value in entries.items() if base[part].get(key) != value}
            for part, entries in own.items()
        }
    return {"ray": ray.__version__, "algorithms": algorithms}


def _own_configs() -> dict[str, Any]:
    """This package's algorithms."""
    from rllib_efficientzero import EfficientZeroConfig

    return {"EfficientZero": EfficientZeroConfig()}


def _as_json(schema: KeySchema) -> dict[str, dict[str, Any]]:
    """A schema as JSON, in which keys of unknown type get "any"."""
    known = {key: value or "any" for key, value in schema.types.items()}
    groups = {group: list(names) for group, names in schema.groups.items()}
    return {"types": known, "groups": groups, "attributes": dict(schema.attributes)}


def render() -> str:
    """The generated file as text."""
    return json.dumps(generate(), indent=1) + "\n"


def main() -> None:
    """Prints the file, or writes it with `--write`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name} instead of printing it")
    text = render()
    if parser.parse_args().write:
        FILE.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
