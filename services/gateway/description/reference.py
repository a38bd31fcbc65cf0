"""The API's description as a page to read: HTML made from the OpenAPI document. No JavaScript, one stylesheet."""

import html
from collections.abc import Iterator, Mapping
from typing import Any

from libs.common.problems import ADVICE, CODES, CONTENT_TYPE
from services.gateway.description.reference_text import (
    code,
    curl,
    json_block,
    limits_of,
    name_of,
    paragraphs,
    text,
    type_of,
)

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Crect width='16' height='16'"
    " rx='4' fill='%230b57c2'/%3E%3Cpath d='M4 8h6M7 5l3 3-3 3' stroke='white' stroke-width='2' fill='none'/%3E"
    "%3C/svg%3E"
)


def page(document: Mapping[str, Any], stylesheet: str) -> str:
    """The whole page; `stylesheet` is the path of its CSS."""
    return "".join(_Page(document).parts(stylesheet))


class _Page:
    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._schemas: Mapping[str, Any] = document["components"]["schemas"]
        self._headers: Mapping[str, Any] = document["components"]["headers"]

    def parts(self, stylesheet: str) -> Iterator[str]:
        info = self._document["info"]
        title = html.escape(info["title"])
        yield (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f"<title>{title} API</title>\n"
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<link rel="icon" href="{_ICON}">\n<link rel="stylesheet" href="{html.escape(stylesheet)}">\n'
            "</head>\n<body>\n"
            '<a class="skip" href="#content">Skip to the content</a>\n'
        )
        yield from self._navigation(title)
        yield (
            f'<main id="content">\n<h1>{title} API <small>{html.escape(info["version"])}</small></h1>\n'
            '<p class="lead">For programs: <a href="/api/openapi.json">openapi.json</a> (OpenAPI 3.1). In the examples '
            f"{code('DESK')} stands for this address and {code('KEY')} for an API key.</p>\n"
            f"{paragraphs(info['description'])}\n"
        )
        for tag in self._document["tags"]:
            name = html.escape(tag["name"])
            yield f'<h2 id="tag-{name}">{_capital(name)}</h2>\n{paragraphs(tag["description"])}\n'
            for method, path, operation in self._operations(tag["name"]):
                yield from self._operation(method, path, operation)
        yield from self._errors()
        yield '<h2 id="models">Models</h2>\n'
        for name, schema in self._schemas.items():
            yield from self._model(name, schema)
        yield "</main>\n</body>\n</html>\n"

    def _operations(self, tag: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for path, methods in self._document["paths"].items():
            for method, operation in methods.items():
                if tag in operation["tags"]:
                    yield method.upper(), path, operation

    def _navigation(self, title: str) -> Iterator[str]:
        yield (
            f'<nav aria-label="Contents">\n<a class="brand" href="#content">{title} API</a>\n'
            '<input type="checkbox" id="menu" aria-label="Show the contents">\n<label for="menu">Contents</label>\n'
            '<div class="list">\n'
        )
        for tag in self._document["tags"]:
            name = html.escape(tag["name"])
            yield f'<h2><a href="#tag-{name}">{_capital(name)}</a></h2>\n<ul>\n'
            for method, path, operation in self._operations(tag["name"]):
                yield (
                    f'<li><a href="#{operation["operationId"]}" title="{html.escape(operation["summary"])}">'
                    f"{_method(method)}<span>{html.escape(path.removeprefix('/api'))}</span></a></li>\n"
                )
            yield "</ul>\n"
        yield '<h2><a href="#errors">Errors</a></h2>\n<h2><a href="#models">Models</a></h2>\n<ul>\n'
        for name in self._schemas:
            yield f'<li><a href="#model-{name}">{name}</a></li>\n'
        yield "</ul>\n</div>\n</nav>\n"

    def _operation(self, method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
        public = "" if operation["security"] else ' <span class="badge">public</span>'
        yield (
            f'<section class="operation" id="{operation["operationId"]}">\n<h3>{text(operation["summary"])}</h3>\n'
            f'<p class="request">{_method(method)}<span class="path">{html.escape(path)}</span>{public}</p>\n'
            f'<div class="columns">\n<div>\n{paragraphs(operation.get("description", ""))}'
        )
        for place, words in (("path", "Path"), ("query", "Query"), ("header", "Headers")):
            found = [parameter for parameter in operation["parameters"] if parameter["in"] == place]
            if found:
                yield f"<h4>{words}</h4>\n{_table(_parameter(parameter) for parameter in found)}"
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if body is not None:
            fields = self._schemas[str(name_of(body))]
            yield f"<h4>Body: {type_of(body)}</h4>\n{_table(_fields(fields))}"
        yield f"<h4>Answers</h4>\n{_table(self._answers(operation), 'answers')}</div>\n<div>\n"
        yield from self._examples(method, path, operation, body)
        yield "</div>\n</div>\n</section>\n"

    def _answers(self, operation: dict[str, Any]) -> Iterator[tuple[str, str]]:
        for status, answer in operation["responses"].items():
            content = answer.get("content", {})
            if CONTENT_TYPE in content:
                codes = content[CONTENT_TYPE]["schema"]["properties"]["code"]["enum"]
                listed = "".join(f'<li><a href="#error-{name}">{code(name)}</a> {_title(name)}</li>' for name in codes)
                told = f'<ul class="codes">{listed}</ul>'
            else:
                schema = next((media["schema"] for media in content.values()), None)
                told = text(answer["description"]) + (f" {type_of(schema)}" if schema else "")
            headers = ", ".join(
                f'<span title="{html.escape(self._header(reference)["description"])}">{code(name)}</span>'
                for name, reference in answer.get("headers", {}).items()
            )
            yield code(status), told + (f'<ul class="headers"><li>{headers}</li></ul>' if headers else "")

    def _header(self, reference: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._headers[reference["$ref"].rpartition("/")[2]]
        return found

    def _examples(
        self, method: str, path: str, operation: dict[str, Any], body: dict[str, Any] | None
    ) -> Iterator[str]:
        sent = self._example(body) if body else None
        yield "<h4>For example</h4>\n" + curl(method, self._target(path, operation), _sent_headers(operation), sent)
        if sent is not None:
            yield "<h4>The body</h4>\n" + json_block(sent)
        for status, answer in operation["responses"].items():
            schema = answer.get("content", {}).get("application/json", {}).get("schema")
            told = self._example(schema) if schema else None
            if told is not None and status < "300":
                yield f"<h4>The answer, {status}</h4>\n" + json_block(told)

    def _example(self, schema: dict[str, Any]) -> Any:
        component = self._schemas.get(name_of(schema) or "", {})
        return next(iter(component.get("examples", ())), None)

    def _target(self, path: str, operation: dict[str, Any]) -> str:
        """The path with an example's ids, and with the query that it needs."""
        for parameter in operation["parameters"]:
            if parameter["in"] == "path":
                model = {"ticket_id": "Ticket", "key_id": "ApiKey"}.get(parameter["name"], "Ticket")
                path = path.replace(f"{{{parameter['name']}}}", self._schemas[model]["examples"][0]["id"])
            elif parameter["in"] == "query" and parameter["required"]:
                path += f"?{parameter['name']}=printer"
        return path

    def _errors(self) -> Iterator[str]:
        yield (
            '<h2 id="errors">Errors</h2>\n'
            + paragraphs("A code never changes its meaning or its status. Treat one you do not know by its status.")
            + '<div class="scroll"><table>\n<thead><tr><th>Code</th><th>Status</th><th>Meaning</th>'
            "<th>What to do</th></tr></thead>\n<tbody>\n"
        )
        for name, (status, title) in CODES.items():
            yield (
                f'<tr id="error-{name}"><td>{code(name)}</td><td>{status}</td><td>{text(title)}</td>'
                f"<td>{text(ADVICE[name])}</td></tr>\n"
            )
        yield "</tbody>\n</table></div>\n"

    def _model(self, name: str, schema: dict[str, Any]) -> Iterator[str]:
        yield f'<section class="model" id="model-{name}">\n<h3>{name}</h3>\n{paragraphs(schema.get("description", ""))}'
        if "properties" in schema:
            yield _table(_fields(schema))
        else:
            yield f"<p>{type_of(schema)}</p>\n"
        yield "</section>\n"


def _sent_headers(operation: dict[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = {}
    kinds = {scheme for alternative in operation["security"] for scheme in alternative}
    if "api_key" in kinds:
        headers["Authorization"] = "Bearer $KEY"
    elif kinds:
        headers |= {"Cookie": "relaydesk_session=$SESSION", "X-CSRF-Token": "$CSRF_TOKEN"}
    if any(parameter["name"] == "If-Match" for parameter in operation["parameters"]):
        headers["If-Match"] = '"2"'
    if "requestBody" in operation:
        headers["Content-Type"] = "application/json"
    return headers


def _parameter(parameter: dict[str, Any]) -> tuple[str, str]:
    schema = parameter["schema"]
    return _name(parameter["name"], needed=parameter["required"]), _value(schema, parameter.get("description", ""))


def _fields(schema: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, field in schema["properties"].items():
        yield _name(name, needed=name in schema.get("required", ())), _value(field, "")


def _name(name: str, *, needed: bool) -> str:
    return code(name) + (' <span class="needed">needed</span>' if needed else "")


def _value(schema: dict[str, Any], words: str) -> str:
    limits = limits_of(schema)
    kind = f'<div class="type">{type_of(schema)}{", " if limits else ""}{limits}</div>'
    return (f"<p>{text(words)}</p>" if words else "") + kind


def _table(lines: Iterator[tuple[str, str]], kind: str = "fields") -> str:
    body = "".join(f"<tr><td>{first}</td><td>{second}</td></tr>\n" for first, second in lines)
    return f'<div class="scroll"><table class="{kind}">\n<tbody>\n{body}</tbody>\n</table></div>\n'


def _method(method: str) -> str:
    return f'<span class="method {method.lower()}">{method}</span>'


def _title(problem: str) -> str:
    return html.escape(CODES[problem][1])


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]
