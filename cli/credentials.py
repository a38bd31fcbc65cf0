"""Where the platform is and with which API key it is asked."""

import json
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cli.errors import NotAuthorisedError, UsageError

DEFAULT_URL = "http://127.0.0.1:8080"
DEMO_FILE = Path(".local", "demo.json")  # written by `make run`


class Target(msgspec.Struct, frozen=True):
    """An address with a key; `source` says in words where the key comes from."""

    url: str
    api_key: str
    source: str


def parse_url(url: str) -> str:
    """Return the address without a trailing slash.

    Raises:
        UsageError: for anything but http(s)://host[:port][/path].
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"--url must look like {DEFAULT_URL}, not {url!r}.")
    return url.rstrip("/")


def find_url(url: str | None, start: Path) -> str:
    """Take the given address, else where `make run` of the checkout that `start` lies in has the gateway, else 8080.

    Raises:
        UsageError: for an address that is none.
    """
    if url:
        return parse_url(url)
    file = _demo_file(start)
    try:
        return parse_url(json.loads(file.read_bytes())["url"]) if file else DEFAULT_URL
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UsageError):
        return DEFAULT_URL


def find(url: str | None, api_key: str | None, start: Path) -> Target:
    """Take the given key, else the one of the checkout that `start` lies in; the address as `find_url`.

    Raises:
        NotAuthorisedError: when there is no key at all, or one that cannot be one.
        UsageError: for an address that is none.
    """
    address = find_url(url, start)
    if api_key:
        if not (api_key.isascii() and api_key.isprintable()) or " " in api_key:
            raise NotAuthorisedError("The API key holds characters that no key has; was it copied completely?")
        return Target(address, api_key, "--api-key or RELAYDESK_API_KEY")
    if file := _demo_file(start):
        return Target(address, _demo_key(file), str(file))
    raise NotAuthorisedError(
        f"No API key: give --api-key or set RELAYDESK_API_KEY. "
        f"(After `make run` the demo key in {DEMO_FILE} of the checkout is used.)"
    )


def _demo_file(start: Path) -> Path | None:
    for folder in (start, *start.parents):
        if (folder / DEMO_FILE).is_file():
            return folder / DEMO_FILE
        if (folder / ".git").exists():
            break
    return None


def _demo_key(file: Path) -> str:
    try:
        return str(json.loads(file.read_bytes())["api_key"]["key"])
    except OSError as error:
        raise NotAuthorisedError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NotAuthorisedError(f"{file} does not hold an API key; remove it or give --api-key.") from error
