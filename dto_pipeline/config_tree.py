"""Configs from YAML files and ``section.key=value`` overrides: plain trees, checked into frozen dataclasses.

Unknown sections and keys are refused, values are never guessed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dto_pipeline.errors import DtoError
from dto_pipeline.reading import parse_yaml, read_regular

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
ABOVE_ZERO = (1e-37, math.inf)  # the range of numbers above 0, in float32


class ConfigError(DtoError, ValueError):
    """A configuration that cannot be used; the message names the key and the next step."""


@dataclasses.dataclass(frozen=True)
class Sections:
    """A config: its fields are sections, frozen dataclasses of options."""

    def option(self, name: str) -> Any:
        """The value of ``section.key``."""
        section, key = name.split(".")
        return getattr(getattr(self, section), key)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain nested dict, JSON-ready (tuples become lists)."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def check(self, choices: Mapping[str, Sequence[Any]], ranges: Mapping[str, tuple[float, float]]) -> None:
        """Check all options: one of `choices`, numbers finite and within `ranges` (0 or more where none is given).

        Raises: ConfigError: the first that is not.
        """
        for section in dataclasses.fields(self):
            for key, value in vars(getattr(self, section.name)).items():
                name = f"{section.name}.{key}"
                found = f"{name} is {value!r}"
                expect(name not in choices or value in choices[name], f"{found}; choose from {choices.get(name)}")
                least, most = ranges.get(name, (0, math.inf))
                wanted = "more than 0" if least == ABOVE_ZERO[0] else f"at least {least:g}"
                wanted = f"a finite number of {wanted}" if most == math.inf else f"{least:g} to {most:g}"
                for number in value if isinstance(value, tuple) else (value,):
                    fits = not isinstance(number, int | float) or (least <= number <= most and math.isfinite(number))
                    expect(fits, f"{found}; expected {wanted}")


def read_tree(path: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Sections and their keys from a YAML file and ``section.key=value``, not yet checked.

    Raises: ConfigError: the file, or an override that is not of this form.
    """
    tree: dict[str, dict[str, Any]] = {}
    if path is not None:
        try:
            found = parse_yaml(read_regular(path)) or {}
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"config file {path} cannot be read: {reason}; give a YAML file") from error
        plain = isinstance(found, dict) and all(
            isinstance(section, str)
            and isinstance(options, dict | None)
            and all(isinstance(key, str) for key in options or {})
            for section, options in found.items()
        )
        wanted = "expected sections (prior:, solver:, ...) of key: value"
        expect(plain, f"config file {path} holds {shorten(found)}; {wanted}")
        tree = {section: dict(options or {}) for section, options in found.items()}
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


def build_sections(cls: type, options: Any, prefix: str = "") -> dict[str, Any]:
    """The entries of `options` as the types of the fields of a dataclass, those of dataclasses inside it too.

    `prefix` names where they stand, "" = sections of a config. Raises: ConfigError: a section, key or value that cannot
    be used, named.
    """
    where = f"config section {prefix[:-1]!r}" if prefix else "a config"
    expect(isinstance(options, Mapping), f"{where} must hold key: value pairs, found {shorten(options)}")
    hints = typing.get_type_hints(cls)
    for key in options:
        unknown = f"key {prefix}{key}; keys" if prefix else f"config section {key!r}; sections"
        expect(key in hints, f"unknown {unknown} are {sorted(hints)}")
    return {key: _coerce(f"{prefix}{key}", hints[key], value) for key, value in options.items()}


def describe_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line per option that differs between two configs as plain dicts, e.g. ``solver.max_height: 2.1 -> 2.2``."""
    lines = []
    for section in sorted(set(old) | set(new)):
        before, after = old.get(section, {}), new.get(section, {})
        for key in sorted(set(before) | set(after)):
            if before.get(key) != after.get(key):
                lines.append(f"{section}.{key}: {before.get(key)!r} -> {after.get(key)!r}")
    return lines


def _coerce(name: str, hint: Any, value: Any) -> Any:
    """A YAML value as the annotated type; an int may stand for a float."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint(**build_sections(hint, value, f"{name}."))
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
    whole = isinstance(value, int) and not isinstance(value, bool)
    if hint is float and (whole or (isinstance(value, str) and _EXPONENT.fullmatch(value))):
        with suppress(OverflowError):  # 1e-4 is a number to everybody but YAML 1.1
            return float(value)
    right = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    expect(right, f"{name} must be {hint.__name__}, found {shorten(value)}")
    expect(value == value, f"{name} must be a number, found {value!r}")
    return value


def shorten(value: Any, most: int = 80) -> str:
    """A value as a message quotes it: not longer than a line, however large it is."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def expect(condition: bool, message: str) -> None:
    """Raises: ConfigError with the message, where the condition does not hold."""
    if not condition:
        raise ConfigError(message)
