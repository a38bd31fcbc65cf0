"""Words and small pieces of HTML for the API's reference page: types, limits, examples. All of it is escaped here."""

import html
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

_TOKENS = re.compile(
    r'(?P<key>"(?:[^"\\]|\\.)*")(?=:)|(?P<string>"(?:[^"\\]|\\.)*")|(?P<number>-?\d[\d.eE+-]*|true|false|null)'
)
_MARKUP = re.compile(r"`(?P<code>[^`]+)`|\*\*(?P<strong>[^*]+)\*\*")


def text(words: str) -> str:
    """Escaped text, in which `code` and **bold** may stand."""
    return _MARKUP.sub(
        lambda found: f"<{found.lastgroup}>{found[found.lastgroup or 0]}</{found.lastgroup}>", html.escape(words)
    )


def paragraphs(words: str) -> str:
    return "".join(f"<p>{text(part)}</p>" for part in words.split("\n\n") if part.strip())


def code(value: str) -> str:
    return f"<code>{html.escape(value)}</code>"


def json_block(value: Any) -> str:
    """JSON with its keys and values told apart by colour."""
    plain = json.dumps(value, indent=2, ensure_ascii=False)
    coloured, end = "", 0
    for token in _TOKENS.finditer(plain):
        coloured += html.escape(plain[end : token.start()])
        coloured += f'<span class="{token.lastgroup}">{html.escape(token[0], quote=False)}</span>'
        end = token.end()
    return f'<pre tabindex="0"><code>{coloured}{html.escape(plain[end:])}</code></pre>'


def curl(method: str, target: str, headers: dict[str, str], body: Any) -> str:
    """A command for a POSIX shell in which `DESK` and `KEY` are set."""
    lines = ["curl" if method == "GET" else f"curl -X {method}"]
    lines[0] += f' "$DESK{target}"'
    for name, value in headers.items():
        line = f"{name}: {value}"
        lines.append(f'-H "{line}"' if "$" in value else f"-H {shlex.quote(line)}")
    if body is not None:
        lines.append("-d " + shlex.quote(json.dumps(body, ensure_ascii=False)))
    return '<pre tabindex="0"><code>' + " \\\n  ".join(html.escape(line) for line in lines) + "</code></pre>"


def name_of(schema: dict[str, Any]) -> str | None:
    """The component that a schema refers to."""
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else None


def type_of(schema: dict[str, Any]) -> str:
    """The type in words; a component as a link to it."""
    if name := name_of(schema):
        return f'<a href="#model-{html.escape(name)}">{html.escape(name)}</a>'
    if "anyOf" in schema and schema.get("type") != "string":
        return " or ".join(type_of(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(code(str(value)) for value in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"array of {len(schema['prefixItems']) if 'prefixItems' in schema else type_of(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {type_of(schema['additionalProperties'])}"
    return html.escape(f"{kind} ({schema['format']})" if "format" in schema else str(kind))


def limits_of(schema: dict[str, Any]) -> str:
    """What else is asked of a value, in words."""
    parts = [schema, *(part for part in schema.get("anyOf", ()) if "$ref" not in part)]
    return ", ".join(limit for part in parts for limit in _limits(part))


def _limits(schema: dict[str, Any]) -> Iterator[str]:
    for least, most, unit in (
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
        ("minProperties", "maxProperties", " entries"),
        ("minimum", "maximum", ""),
    ):
        low, high = schema.get(least), schema.get(most)
        if "prefixItems" in schema:
            continue
        if low is not None and high is not None:
            yield f"{low:,}\u2013{high:,}{unit}"
        elif high is not None:
            yield f"at most {high:,}{unit}"
        elif low is not None:
            yield f"at least {low:,}{unit}"
    if "exclusiveMaximum" in schema:
        yield f"below {schema['exclusiveMaximum']:,}"
    if pattern := schema.get("pattern"):
        yield from _pattern(pattern)
    if schema.get("default") is not None:
        default = schema["default"]
        yield f"default {code(default if isinstance(default, str) and default else json.dumps(default))}"


def _pattern(pattern: str) -> Iterator[str]:
    if r"\x00" not in pattern:
        yield f"matches {code(pattern)}"
        return
    if not re.search(pattern, " "):
        yield "not blank"
    yield "without U+0000"
