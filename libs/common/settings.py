"""Strict settings from the environment.

A service declares a frozen dataclass; every field is one variable, named by `env(...)`. Missing, malformed and
unknown variables are collected and reported together, before anything starts.
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

S = TypeVar("S")


class SettingsError(Exception):
    """The environment does not describe a service that can start; the message lists every reason."""


def env(name: str, parse: Callable[[str], Any] = str, default: Any = dataclasses.MISSING) -> Any:
    """Declare the variable `name` of a settings dataclass.

    `parse` turns the text into the value and raises ValueError for text it does not take.
    Without `default` the variable is required. There are no default secrets.
    """
    metadata = {"env": name, "parse": parse}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def boolean(text: str) -> bool:
    """`true` or `false`, nothing else."""
    if text not in {"true", "false"}:
        raise ValueError("expected true or false")
    return text == "true"


def integer(minimum: int, maximum: int) -> Callable[[str], int]:
    """A whole number within [minimum, maximum]."""

    def parse(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or not minimum <= int(text) <= maximum:
            raise ValueError(f"expected a whole number from {minimum} to {maximum}")
        return int(text)

    return parse


def number(minimum: float, maximum: float) -> Callable[[str], float]:
    """A number within [minimum, maximum]."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not minimum <= value <= maximum:
            raise ValueError(f"expected a number from {minimum:g} to {maximum:g}")
        return value

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    """One of the given words."""

    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}")
        return text

    return parse


def url(*schemes: str) -> Callable[[str], str]:
    """An address with one of the given schemes; a trailing slash is dropped."""

    def parse(text: str) -> str:
        scheme, separator, rest = text.partition("://")
        if not separator or scheme not in schemes or not rest:
            raise ValueError(f"expected an address that starts with {' or '.join(s + '://' for s in schemes)}")
        return text.rstrip("/")

    return parse


def origin(text: str) -> str:
    """An exact browser origin: scheme, host and port, nothing after them."""
    scheme, separator, host = text.partition("://")
    if scheme not in {"http", "https"} or not separator or not host or set(host) & set("/*?#@ "):
        raise ValueError(f"{text!r} is not an origin such as https://desk.example.com")
    return text.lower()


def comma_list(item: Callable[[str], Any] = str) -> Callable[[str], tuple[Any, ...]]:
    """Items separated by commas; the empty text is the empty list."""

    def parse(text: str) -> tuple[Any, ...]:
        return tuple(item(part.strip()) for part in text.split(",") if part.strip())

    return parse


POSTGRES_URL = url("postgresql", "postgres")
REDIS_URL = url("redis", "rediss", "unix")
HTTP_URL = url("http", "https")
PORT = integer(0, 65535)
WORKERS = integer(1, 64)


def load(settings_type: type[S], environment: Mapping[str, str], *, prefix: str) -> S:
    """Read `settings_type` from `environment`.

    Variables that start with `prefix` belong to this service alone, so an unknown one is an error and not a
    silent typo.

    Raises:
        SettingsError: with one line a variable.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    known: set[str] = set()
    for field in dataclasses.fields(settings_type):  # type: ignore[arg-type]
        name = field.metadata["env"]
        known.add(name)
        text = environment.get(name)
        if text is None or text == "":
            if field.default is dataclasses.MISSING:
                problems.append(f"{name} is missing")
            continue
        try:
            values[field.name] = field.metadata["parse"](text)
        except ValueError as error:
            problems.append(f"{name} is not valid: {error}")
    for name in sorted(environment):
        if name.startswith(prefix) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            problems.append(f"{name} is not a setting of this service{hint}")
    if problems:
        raise SettingsError("\n".join(problems))
    return settings_type(**values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """What every service is told."""

    log_level: str = env("LOG_LEVEL", one_of("debug", "info", "warning", "error"), "info")
    log_format: str = env("LOG_FORMAT", one_of("json", "console"), "json")
    otlp_endpoint: str | None = env("OTEL_EXPORTER_OTLP_ENDPOINT", HTTP_URL, None)
    trace_sample_ratio: float = env("TRACE_SAMPLE_RATIO", number(0, 1), 0.01)
    drain_seconds: float = env("DRAIN_SECONDS", number(0, 300), 5.0)
