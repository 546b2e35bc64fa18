"""The OpenAPI document, made from the table of routes and the contracts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from flowfabric.contracts.packed import JSON, MSGPACK
from flowfabric.contracts.schema import Form, Schema, Schemas
from flowfabric.core.registry import result_type_of
from flowfabric.server.live import EVENT_STREAM
from flowfabric.server.permissions import roles_for
from flowfabric.server.routes.table import PATH_FIELD, ROUTES, EventText, PageText, PlainText, Route
from flowfabric.version import installed_version

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION: Final = "3.1.0"
_OCTETS: Final = "application/octet-stream"
_TEXT: Final = "text/plain"
_PROBLEM: Final[Schema] = {
    "type": "object",
    "description": "What went wrong.",
    "properties": {
        "error": {"type": "string", "description": "the code, with its detail"},
        "kind": {"type": "string", "description": "the class of errors it belongs to"},
        "retryable": {"type": "boolean", "description": "whether the same request may succeed later"},
        "code": {"type": "string"},
        "message": {"type": "string", "description": "what happened, and what to do"},
        "details": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["error"],
}
_REQUEST_ID: Final[Schema] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Repeat it to ask again after a lost answer.",
    "schema": {"type": "string", "maxLength": 256, "pattern": "^[!-~]*$"},
}
_LAST_EVENT_ID: Final[Schema] = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The id of the last message that was dealt with; nothing behind it is left out.",
    "schema": {"type": "string", "maxLength": 256, "pattern": "^[!-~]*$"},
}


def openapi_document() -> dict[str, Any]:
    """The whole document."""
    public, plain = Schemas(Form.PUBLIC), Schemas(Form.PLAIN)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        for path, described in _described(route, public, plain):
            paths.setdefault(path, {})[route.method.lower()] = described
    schemas = {"Problem": _PROBLEM, **public.found, **plain.found}
    return {
        "openapi": VERSION,
        "info": {"title": "FlowFabric", "version": installed_version(), "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(route: Route, public: Schemas, plain: Schemas) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of one row: one, or one for each operation where the path names it."""
    if not route.operations:
        yield route.path, _operation(route, public, plain)
        return
    for name, kind in route.operations().items():
        described = _operation(route, public, plain)
        described["operationId"] = f"command_{name}"
        described["summary"] = (kind.__doc__ or "").strip().partition("\n")[0]
        described["description"] = f"Needs one of the roles: {', '.join(sorted(roles_for(name)))}."
        described["parameters"] = [_REQUEST_ID]
        described["requestBody"] = _body(plain.of(kind), JSON, MSGPACK)
        described["responses"]["200"] = _success(plain.of(result_type_of(kind)), JSON, MSGPACK)
        yield route.path.replace("{operation}", name), described


def _operation(route: Route, public: Schemas, plain: Schemas) -> dict[str, Any]:
    schemas = plain if route.form is Form.PLAIN else public
    described: dict[str, Any] = {
        "operationId": route.answer.__name__,
        "summary": route.summary,
        "parameters": [*_path_parameters(route), *_query_parameters(route)],
        "responses": {**_successes(route, schemas), "default": _failure()},
    }
    if route.form is Form.PUBLIC and _has_numbers(route):
        described["responses"]["400"] = _failure(_TEXT)
    if route.roles:
        described["security"] = [{"token": []}]
        described["description"] = f"Needs one of the roles: {', '.join(sorted(route.roles))}."
    if route.body is not None:
        fields = set(PATH_FIELD.findall(route.path))
        forms = (JSON, MSGPACK) if route.form is Form.PLAIN else (JSON,)
        described["requestBody"] = _body(_without(schemas.of(route.body), fields, schemas), *forms)
    if route.method != "GET":
        described["parameters"].append(_REQUEST_ID)
    if EventText in route.statuses.values():
        described["parameters"].append(_LAST_EVENT_ID)
    return described


def _path_parameters(route: Route) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in PATH_FIELD.findall(route.path)
    ]


def _query_parameters(route: Route) -> list[Schema]:
    return [
        {
            "name": name,
            "in": "query",
            "required": parameter.required,
            "description": parameter.summary,
            "schema": parameter.schema,
        }
        for name, parameter in route.query.items()
    ]


def _without(schema: Schema, fields: set[str], schemas: Schemas) -> Schema:
    """The schema of a body that need not repeat what the path says."""
    if "$ref" not in schema:
        return schema
    named = schemas.found[schema["$ref"].rpartition("/")[2]]
    required = [name for name in named.get("required", []) if name not in fields]
    if not fields & set(named["properties"]):
        return schema
    lean = {**named, "required": required}
    return lean if required else {name: value for name, value in lean.items() if name != "required"}


def _body(schema: Schema, *forms: str) -> Schema:
    return {"required": True, "content": {form: {"schema": schema} for form in forms}}


def _successes(route: Route, schemas: Schemas) -> Schema:
    return {str(status): _answered(kind, route, schemas) for status, kind in route.statuses.items()}


def _answered(kind: Any, route: Route, schemas: Schemas) -> Schema:
    if kind is None:
        return {"description": "Nothing to say."}
    if kind is bytes:
        return _success({"type": "string", "format": "binary"}, _OCTETS)
    if kind is PlainText:
        return _success({"type": "string"}, "text/plain")
    if kind is PageText:
        return _success({"type": "string"}, "text/html", "text/javascript", "text/css")
    if kind is EventText:
        return _success({"type": "string"}, EVENT_STREAM)
    forms = (JSON, MSGPACK) if route.form is Form.PLAIN else (JSON,)
    return _success(schemas.of(kind), *forms)


def _success(schema: Schema, *forms: str) -> Schema:
    return {"description": "Done.", "content": {form: {"schema": schema} for form in forms}}


def _has_numbers(route: Route) -> bool:
    """Whether the path or the query has a number, which may be none."""
    numbers = (parameter.schema["type"] == "integer" for parameter in route.query.values())
    return "{attempt_index}" in route.path or any(numbers)


def _failure(*also: str) -> Schema:
    content: Schema = {JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    content.update({form: {"schema": {"type": "string"}} for form in also})
    return {"description": "Refused, or failed.", "content": content}
