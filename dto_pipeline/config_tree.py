"""Configs from YAML files and ``section.key=value`` overrides: plain trees, checked into frozen dataclasses.

Knows types, no section and no option; unknown sections and keys are refused, values never guessed.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from contextlib import suppress
from pathlib import Path
from typing import Any

from dto_pipeline.errors import DtoError
from dto_pipeline.reading import parse_yaml, read_regular

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


class ConfigError(DtoError, ValueError):
    """A configuration that cannot be used; the message names the key and the next step."""


def read_tree(path: str | Path | None, overrides: typing.Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Sections and their keys as told by a YAML file and ``section.key=value``, not yet checked.

    Raises:
        ConfigError: the file, or an override that is not of this form.
    """
    tree: dict[str, dict[str, Any]] = {}
    if path is not None:
        tree = _read_yaml(Path(path))
    for text in overrides:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        expect(bool(equals and dot), f"override {text!r} is not of the form section.key=value")
        try:
            options, keys = tree.setdefault(section, {}), key.split(".")
            for inner in keys[:-1]:  # a section inside it (``section.inner.key``) is made if missing
                options = options.setdefault(inner, {})
            options[keys[-1]] = parse_yaml(value)
        except ValueError as error:
            raise ConfigError(f"override {shorten(text)}: value is not YAML: {error}") from error
        except (AttributeError, TypeError) as error:
            raise ConfigError(f"override {shorten(text)}: a part before the last holds a value, no keys") from error
    return tree


def build_sections(config: type, tree: typing.Mapping[str, typing.Mapping[str, Any]]) -> dict[str, Any]:
    """The sections of `tree` as the dataclasses that are the fields of `config`; unknown sections and keys are refused.

    Raises:
        ConfigError: a section, key or value that cannot be used, named.
    """
    hints = typing.get_type_hints(config)
    built = {}
    for section, options in tree.items():
        expect(section in hints, f"unknown config section {section!r}; sections are {sorted(hints)}")
        expect(isinstance(options, typing.Mapping), f"config section {section!r} must hold key: value pairs")
        built[section] = _section_from_dict(section, hints[section], options)
    return built


def describe_difference(old: typing.Mapping[str, Any], new: typing.Mapping[str, Any]) -> list[str]:
    """One line per option that differs between two configs as plain dicts, e.g. ``solver.max_height: 2.1 -> 2.2``."""
    lines = []
    for section in sorted(set(old) | set(new)):
        before, after = old.get(section, {}), new.get(section, {})
        for key in sorted(set(before) | set(after)):
            if before.get(key) != after.get(key):
                lines.append(f"{section}.{key}: {before.get(key)!r} -> {after.get(key)!r}")
    return lines


def _section_from_dict(section: str, cls: type, options: typing.Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in options.items():
        expect(key in hints, f"unknown key {section}.{key}; keys are {sorted(hints)}")
        values[key] = _coerce(f"{section}.{key}", hints[key], value)
    return cls(**values)


def _coerce(name: str, hint: Any, value: Any) -> Any:
    """Turn a YAML value into the annotated type, or say why not; never guesses (an int may stand for a float)."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        expect(isinstance(value, typing.Mapping), f"{name} must hold key: value pairs, found {value!r}")
        return _section_from_dict(name, hint, value)
    if typing.get_origin(hint) is tuple:
        expect(isinstance(value, list | tuple), f"{name} must be a list, found {value!r}")
        args = typing.get_args(hint)
        if args[-1] is not Ellipsis:
            expect(len(value) == len(args), f"{name} needs {len(args)} values, found {len(value)}")
        return tuple(_coerce(name, args[0], item) for item in value)
    if isinstance(hint, types.UnionType):
        hints = typing.get_args(hint)
        for one in hints:  # the first that the value fits
            with suppress(ConfigError):
                return _coerce(name, one, value)
        raise ConfigError(f"{name} must be {' or '.join(one.__name__ for one in hints)}, found {shorten(value)}")
    if hint is float and isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)  # 1e-4 is a number to everybody but YAML 1.1
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    right = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    expect(right, f"{name} must be {hint.__name__}, found {shorten(value)}")
    expect(value == value, f"{name} must be a number, found {value!r}")
    return value


def _read_yaml(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tree = parse_yaml(read_regular(path)) or {}
    except FileNotFoundError as error:
        raise ConfigError(f"config file {path} does not exist; check the path") from error
    except OSError as error:
        raise ConfigError(f"config file {path} cannot be read: {error.strerror}; give a YAML file") from error
    except ValueError as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}; give a YAML file") from error
    expect(isinstance(tree, dict), f"config file {path} must hold sections (prior:, solver:, ...)")
    for section, options in tree.items():
        found = f"found {type(options).__name__} {shorten(options)}"
        expect(isinstance(section, str), f"config file {path}: {shorten(section)} is no name of a section")
        expect(isinstance(options, dict | None), f"config file {path}: {section} must hold key: value pairs, {found}")
        odd = [key for key in options or {} if not isinstance(key, str)]
        expect(not odd, f"config file {path}: {section}: {shorten(odd)} are no names of keys")
    return {section: dict(options or {}) for section, options in tree.items()}


def shorten(value: Any, most: int = 80) -> str:
    """A value as a message quotes it: not longer than a line, however large it is."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def expect(condition: bool, message: str) -> None:
    """Raises: ConfigError with the message, where the condition does not hold."""
    if not condition:
        raise ConfigError(message)
