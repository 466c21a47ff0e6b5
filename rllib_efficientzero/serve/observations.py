"""Decodes observations from clients into arrays of the policy's shape and type; no input here is trusted."""

from __future__ import annotations

import base64
import binascii
import io
import struct
from typing import Any

import cv2
import numpy as np

from rllib_efficientzero.env.checks import ACTION_MASK, OBSERVATIONS
from rllib_efficientzero.serve.service import PolicyFacts

ENCODINGS = ("png", "npy")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_MAX_HEADER = 10_000


class BadInputError(ValueError):
    """The input cannot be an observation or a set of legal actions; the message says why."""


def decode_observation(given: Any, facts: PolicyFacts) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns one frame `[...]` or a whole stack `[S, ...]`, and the mask `[A]` if the observation has one, else None.

    Args:
        given: nested lists of numbers; `{"png": base64}` or `{"npy": base64}`; or `{"observations": one of these,
            "action_mask": [...]}`.
        facts: of the policy.

    Raises:
        BadInputError: it is something else, or of another shape, or not finite.
    """
    mask = None
    if isinstance(given, dict) and OBSERVATIONS in given:
        unknown = set(given) - {OBSERVATIONS, ACTION_MASK}
        if unknown:
            raise BadInputError(f"an observation has '{OBSERVATIONS}' and '{ACTION_MASK}', and nothing else")
        if given.get(ACTION_MASK) is not None:
            mask = decode_legal_actions([bool(flag) for flag in _numbers(given[ACTION_MASK], ACTION_MASK)], facts)
        given = given[OBSERVATIONS]
    array = _decode_encoded(given, facts) if isinstance(given, dict) else _from_lists(given)
    return _as_known(array, facts), mask


def decode_legal_actions(given: Any, facts: PolicyFacts) -> np.ndarray | None:
    """Turns numbers of legal actions, or one flag per action, into `[A]` bool; returns None for None.

    Raises:
        BadInputError: it is neither, or no action is legal.
    """
    if given is None:
        return None
    actions = facts.num_actions
    if actions is None:
        raise BadInputError("this policy samples its actions: none of them can be called illegal")
    if not isinstance(given, list) or not given:
        raise BadInputError("legal_actions is a list of action numbers, or of one true or false per action")
    if all(isinstance(flag, bool) for flag in given):
        if len(given) != actions:
            raise BadInputError(f"legal_actions has {len(given)} flags, and there are {actions} actions")
        legal = np.array(given, dtype=bool)
    else:
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in given):
            raise BadInputError("legal_actions is a list of action numbers, or of one true or false per action")
        if not all(0 <= number < actions for number in given):
            raise BadInputError(f"actions are numbered from 0 to {actions - 1}")
        legal = np.zeros(actions, dtype=bool)
        legal[given] = True
    if not legal.any():
        raise BadInputError("no action is legal")
    return legal


def _numbers(given: Any, name: str) -> list[Any]:
    if not isinstance(given, list) or not all(isinstance(item, bool | int | float) for item in given):
        raise BadInputError(f"'{name}' is a list of numbers")
    return given


def _from_lists(given: Any) -> np.ndarray:
    if not isinstance(given, list):
        raise BadInputError("an observation is a list of numbers, {'png': base64} or {'npy': base64}")
    try:
        array = np.array(given)
    except (ValueError, OverflowError, RecursionError) as error:
        raise BadInputError("an observation is a list of numbers, or lists of lists of equal lengths") from error
    if array.dtype.kind not in "biuf":
        raise BadInputError("an observation consists of numbers")
    return array


def _decode_encoded(given: dict[str, Any], facts: PolicyFacts) -> np.ndarray:
    if len(given) != 1 or next(iter(given)) not in ENCODINGS:
        raise BadInputError(f"an encoded observation is an object with one of the keys {', '.join(ENCODINGS)}")
    ((encoding, text),) = given.items()
    if not isinstance(text, str):
        raise BadInputError(f"'{encoding}' is a base64 string")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadInputError(f"'{encoding}' is not valid base64") from error
    return _decode_png(content, facts) if encoding == "png" else _decode_npy(content, facts)


def _decode_png(content: bytes, facts: PolicyFacts) -> np.ndarray:
    """Decodes an image into u8 `[H, W, C]`; checks its size before it is decompressed."""
    if len(facts.frame_shape) != 3 or facts.frame_dtype != "uint8":
        raise BadInputError("this policy does not see images of 8 bits")
    height, width, channels = facts.frame_shape
    if len(content) < 33 or not content.startswith(_PNG_START):
        raise BadInputError("'png' is not a PNG image")
    found_width, found_height = struct.unpack(">II", content[16:24])
    if (found_height, found_width) != (height, width):
        raise BadInputError(f"the image must have {width}x{height} pixels")
    if channels not in (1, 3):
        raise BadInputError(f"observations with {channels} channels cannot be sent as PNG: use npy")
    try:
        image = cv2.imdecode(
            np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
        )
    except cv2.error as error:
        raise BadInputError("'png' is not a PNG image") from error
    if image is None:
        raise BadInputError("'png' is a damaged image")
    return image[..., ::-1] if channels == 3 else image[..., None]


def _decode_npy(content: bytes, facts: PolicyFacts) -> np.ndarray:
    """Decodes a numpy array without pickle; its header must fit the policy before memory is allocated for its data."""
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(stream, max_header_size=_MAX_HEADER)
    except (ValueError, KeyError, SyntaxError, TypeError, EOFError, RecursionError, MemoryError) as error:
        raise BadInputError("'npy' is not an array in numpy's format, version 1 or 2") from error
    if dtype.kind not in "biuf":
        raise BadInputError("an observation consists of numbers")
    _check_shape(shape, facts)
    stream.seek(0)
    try:
        return np.load(stream, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise BadInputError("'npy' is cut off") from error


def _check_shape(shape: tuple[int, ...], facts: PolicyFacts) -> None:
    stacked = (facts.frame_stack, *facts.frame_shape)
    if tuple(shape) not in (facts.frame_shape, stacked):
        found = tuple(shape) if len(shape) <= 8 else f"{len(shape)} axes"
        raise BadInputError(f"the observation has shape {found}; it must be {facts.frame_shape} or {stacked}")


def _as_known(array: np.ndarray, facts: PolicyFacts) -> np.ndarray:
    """Converts an array to the policy's type; refuses values that would not fit or would lose their fractions."""
    _check_shape(array.shape, facts)
    dtype = np.dtype(facts.frame_dtype)
    if not np.isfinite(array).all():
        raise BadInputError("an observation must be finite")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise BadInputError(f"values must lie between {limits.min} and {limits.max}")
        if array.dtype.kind == "f" and not np.array_equal(array, np.trunc(array)):
            raise BadInputError("values must be whole numbers")
    with np.errstate(over="ignore"):
        known = array.astype(dtype)
    if not np.isfinite(known).all():
        raise BadInputError(f"values must fit {facts.frame_dtype}")
    return np.ascontiguousarray(known)
