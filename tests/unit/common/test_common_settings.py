"""Strict settings: whatever is wrong with an environment is told at once."""

import dataclasses

import pytest

from libs.common import settings
from libs.common.settings import (
    HTTP_URL,
    POSTGRES_URL,
    SettingsError,
    boolean,
    comma_list,
    env,
    integer,
    number,
    one_of,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    url: str = env("EXAMPLE_URL", POSTGRES_URL)
    secret: str = env("SHARED_SECRET")
    port: int = env("EXAMPLE_PORT", integer(1, 65535), 8080)
    eager: bool = env("EXAMPLE_EAGER", boolean, default=False)
    ratio: float = env("EXAMPLE_RATIO", number(0, 1), 0.5)
    level: str = env("EXAMPLE_LEVEL", one_of("low", "high"), "low")
    peers: tuple[str, ...] = env("EXAMPLE_PEERS", comma_list(HTTP_URL), ())


COMPLETE = {"EXAMPLE_URL": "postgresql://u:p@h/d", "SHARED_SECRET": "s"}


def load(**changes: str) -> Example:
    return settings.load(Example, COMPLETE | changes, prefix="EXAMPLE_")


def reasons(environment: dict[str, str]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        settings.load(Example, environment, prefix="EXAMPLE_")
    return str(caught.value).splitlines()


def test_what_is_left_out_has_its_default() -> None:
    assert load() == Example(url="postgresql://u:p@h/d", secret="s")


def test_every_kind_of_value_is_read() -> None:
    loaded = load(
        EXAMPLE_PORT="9",
        EXAMPLE_EAGER="true",
        EXAMPLE_RATIO="0.25",
        EXAMPLE_LEVEL="high",
        EXAMPLE_PEERS="http://a/, https://b",
    )
    assert (loaded.port, loaded.eager, loaded.ratio, loaded.level) == (9, True, 0.25, "high")
    assert loaded.peers == ("http://a", "https://b")


def test_variables_of_others_are_none_of_our_business() -> None:
    assert load(OTHER_PORT="x", PATH="/bin") == load()


def test_an_unknown_variable_of_ours_is_refused_with_the_name_it_was_meant_to_be() -> None:
    assert reasons(COMPLETE | {"EXAMPLE_PROT": "1"}) == [
        "EXAMPLE_PROT is not a setting of this service (did you mean EXAMPLE_PORT?)"
    ]
    assert reasons(COMPLETE | {"EXAMPLE_ZZZZZZZZZZZZZZZ": "1"}) == [
        "EXAMPLE_ZZZZZZZZZZZZZZZ is not a setting of this service"
    ]


def test_all_reasons_are_told_together() -> None:
    told = reasons({"EXAMPLE_URL": "mysql://x", "EXAMPLE_PORT": "0", "EXAMPLE_EAGER": "yes", "EXAMPLE_LEVLE": "low"})
    assert [line.split()[0] for line in told] == [
        "EXAMPLE_URL",
        "SHARED_SECRET",
        "EXAMPLE_PORT",
        "EXAMPLE_EAGER",
        "EXAMPLE_LEVLE",
    ]
    assert "SHARED_SECRET is missing" in told


def test_an_empty_variable_is_a_missing_one() -> None:
    assert reasons(COMPLETE | {"SHARED_SECRET": ""}) == ["SHARED_SECRET is missing"]
    assert load(EXAMPLE_PORT="").port == 8080


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("EXAMPLE_PORT", "eighty"),
        ("EXAMPLE_PORT", "65536"),
        ("EXAMPLE_PORT", "8080.0"),
        ("EXAMPLE_EAGER", "True"),
        ("EXAMPLE_RATIO", "nan"),
        ("EXAMPLE_RATIO", "1.1"),
        ("EXAMPLE_RATIO", "half"),
        ("EXAMPLE_LEVEL", "LOW"),
        ("EXAMPLE_URL", "postgresql://"),
        ("EXAMPLE_URL", "localhost:5432"),
        ("EXAMPLE_PEERS", "http://a,ftp://b"),
    ],
)
def test_a_malformed_value_is_named_with_what_is_expected(name: str, text: str) -> None:
    (told,) = reasons(COMPLETE | {name: text})
    assert told.startswith(f"{name} is not valid: expected ")


def test_a_refused_address_is_not_repeated_for_it_may_hold_a_password() -> None:
    (told,) = reasons(COMPLETE | {"EXAMPLE_URL": "mysql://user:hunter2@host/db"})
    assert "hunter2" not in told
