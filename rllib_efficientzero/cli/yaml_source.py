"""YAML text -> plain data that remembers on which line everything stands.

`yaml.safe_load` keeps the last of two equal keys, loses line numbers and expands aliases without bound. Here nodes are
composed and walked by hand: duplicate keys, foreign tags, endless nesting and alias bombs are errors with a line.
"""

from __future__ import annotations

import pathlib
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from rllib_efficientzero.cli.errors import InputError
from rllib_efficientzero.config_schema import Path, nearest

MAX_DEPTH = 50
MAX_VALUES = 20_000
MAX_CHARACTERS = 1_000_000

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null", "map", "seq", "timestamp", "merge")}


@dataclass
class LocatedData:
    """Plain data and the line of each key and list item, from 1."""

    data: Any
    lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """The line of `path`, or of the innermost enclosing key that has one."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


class FilePlace:
    """`file:line` of paths below one experiment."""

    def __init__(self, file: str, located: LocatedData, name: str) -> None:
        self.file = file
        self.located = located
        self.name = name

    def __call__(self, *path: str | int) -> str:
        return f"{self.file}:{self.located.line((self.name, *path))}"


def read_text(file: pathlib.Path) -> str:
    """Returns the file's text; the error for a missing file suggests the nearest name beside it."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", str(file)) from error
    except OSError as error:
        near = nearest(file.name, [entry.name for entry in _neighbours(file)])
        hint = f"; did you mean {str(file.with_name(near))!r}?" if near else ""
        raise InputError(f"cannot read the file: {error.strerror}{hint}", str(file)) from error


def _neighbours(file: pathlib.Path) -> list[pathlib.Path]:
    try:
        return [entry for entry in file.parent.iterdir() if entry.suffix in {".yaml", ".yml", ".py"}]
    except OSError:
        return []


def load_yaml(text: str, name: str) -> LocatedData:
    """Parses one YAML document.

    Args:
        text: The document.
        name: What errors call it, usually the file's path.

    Raises:
        InputError: With `name:line` at the first thing that is wrong.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"{len(text)} characters; an experiment file has at most {MAX_CHARACTERS}", name)
    try:
        _check_depth(text, name)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(f"character {error.character!r} is not allowed in YAML", f"{name}:{line}") from error
    except yaml.MarkedYAMLError as error:
        raise InputError(_explain(error), f"{name}:{_error_line(error)}") from error
    if node is None:
        raise InputError("the file is empty; it needs `name: {run: ..., env: ..., config: {...}}`", name)
    return _Builder(name).build(node)


def _check_depth(text: str, name: str) -> None:
    """Refuses deep nesting while it is parsed: composing it would end in a RecursionError."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise InputError(f"nested deeper than {MAX_DEPTH} levels", f"{name}:{line}")


def _error_line(error: yaml.MarkedYAMLError) -> int:
    mark = error.problem_mark or error.context_mark
    return mark.line + 1 if mark else 1


def _explain(error: yaml.MarkedYAMLError) -> str:
    """PyYAML's words, replaced where they do not say what to do."""
    problem = error.problem or str(error)
    if r"character '\t'" in problem:
        return "a tab; YAML is indented with spaces"
    if "expected a single document" in (error.context or ""):
        return "a second document ('---'); put all experiments into one"
    if "undefined alias" in problem:
        return f"{problem.removeprefix('found ')}; define it before with '&name'"
    context = f" {error.context}" if error.context else ""
    return f"not valid YAML: {problem}{context}"


class _Builder:
    """Walks composed nodes once, counting every value it makes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.located = LocatedData(None)
        self.num_values = 0
        self.scalars = yaml.constructor.SafeConstructor()

    def build(self, node: yaml.Node) -> LocatedData:
        self.located.data = self.value(node, (), 0)
        return self.located

    def error(self, message: str, node: yaml.Node) -> InputError:
        return InputError(message, f"{self.name}:{node.start_mark.line + 1}")

    def value(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self.num_values += 1
        if self.num_values > MAX_VALUES or depth > MAX_DEPTH:
            raise self.error("aliases ('*name') expand to too much; write the values out", node)
        if node.tag not in _PLAIN_TAGS:
            tag = node.tag.replace(_TAG, "!!")
            raise self.error(f"tag {tag!r} is not allowed; only plain YAML values are", node)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.item(child, (*path, i), depth) for i, child in enumerate(node.value)]
        return self.scalar(node)

    def item(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self.located.lines[path] = node.start_mark.line + 1
        return self.value(node, path, depth + 1)

    def scalar(self, node: yaml.Node) -> Any:
        try:
            return self.scalars.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise self.error(f"{node.value!r} is not a valid value: {error}", node) from error

    def mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[Hashable, Any]:
        result: dict[Hashable, Any] = {}
        first_lines: dict[Hashable, int] = {}
        for key_node, value_node, inherited in self.pairs(node, depth):
            key = self.key(key_node)
            line = key_node.start_mark.line + 1
            if inherited and key in result:
                continue
            if key in first_lines:
                raise self.error(f"duplicate key {key!r}; it already stands on line {first_lines[key]}", key_node)
            if not inherited:
                first_lines[key] = line
            inner = (*path, key)
            self.located.lines[inner] = line
            result[key] = self.value(value_node, inner, depth + 1)
        return result

    def pairs(self, node: yaml.MappingNode, depth: int) -> Iterator[tuple[yaml.Node, yaml.Node, bool]]:
        """The mapping's own pairs, then those of its merge keys (`<<: *base`), which never override."""
        merges = [(key, value) for key, value in node.value if key.tag == _TAG + "merge"]
        for key, value in node.value:
            if key.tag != _TAG + "merge":
                yield key, value, False
        for key, value in merges:
            bases = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for base in bases:
                if not isinstance(base, yaml.MappingNode) or depth > MAX_DEPTH:
                    raise self.error("'<<' merges mappings: `<<: *name`", key)
                for inner_key, inner_value, _ in self.pairs(base, depth + 1):
                    yield inner_key, inner_value, True

    def key(self, node: yaml.Node) -> str | int:
        """A key as a string or (multi-agent policies) an int."""
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN_TAGS:
            raise self.error("a key must be a plain string", node)
        key = self.scalar(node)
        if isinstance(key, bool) or not isinstance(key, str | int):
            raise self.error(f"key {node.value!r} reads as {key!r}; quote it to make it a string", node)
        return key
