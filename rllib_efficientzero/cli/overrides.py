"""`--config` and `--stop`: JSON objects merged over what the file says."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, TypeGuard

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.search_space import is_search_space


def parse_json_option(text: str, option: str) -> dict[str, Any]:
    """The JSON object given to an option.

    Raises:
        InputError: It is no JSON, no object, or has a key twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, option))
    except json.JSONDecodeError as error:
        hint = "; JSON strings take double quotes: '{\"key\": 1}'" if "'" in text or '"' not in text else ""
        raise InputError(f"not valid JSON at character {error.pos + 1}: {error.msg}{hint}", option) from error
    except RecursionError as error:
        raise InputError("nested too deep", option) from error
    if not isinstance(value, dict):
        raise InputError(f"must be a JSON object like '{{\"key\": 1}}', not {text.strip()!r}", option)
    return value


def _unique(pairs: list[tuple[str, Any]], option: str) -> dict[str, Any]:
    """A JSON object, refusing the second of two equal keys, which `json` would silently keep."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise InputError(f"duplicate key {key!r}", option)
        result[key] = value
    return result


def _is_nested(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping) and not is_search_space(value)


def merge_deep(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` wins; mappings are merged key by key, everything else (lists, search spaces) is replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if _is_nested(old) and _is_nested(value):
            merged[key] = merge_deep(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
