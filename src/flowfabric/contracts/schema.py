"""JSON schemas of the contracts, in both of their JSON forms.

``PUBLIC`` is the form of ``wire.py``: bytes as arrays of numbers, variants as their name around
their fields. ``PLAIN`` is the form of ``packed.py``: bytes in base64, variants with a field ``type``.
The schemas say what the types say; rules that span fields are only in the commands' ``validate``.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from types import NoneType, UnionType
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec

from flowfabric.contracts.predicates import unwrap
from flowfabric.contracts.streams import StreamFrame
from flowfabric.contracts.wire import BARE, DIGITS, NEWTYPES, is_external


class Form(StrEnum):
    """How values are written."""

    PUBLIC = "public"
    PLAIN = "plain"


Schema = dict[str, Any]

_SCALARS: Final[dict[Any, Schema]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    object: {},
    Any: {},
    msgspec.Raw: {},
}
_LIMITS: Final = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_SIZES: Final = {str: ("minLength", "maxLength"), dict: ("minProperties", "maxProperties")}
_ITEMS: Final = ("minItems", "maxItems")
_NUMBERS: Final[Schema] = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}}
_FRAME: Final[Schema] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "fields": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["id", "fields"],
}


class Schemas:
    """Writes schemas, and gathers those of structs under their names.

    Attributes:
        found: the schemas of structs, by name.
    """

    def __init__(self, form: Form, prefix: str = "#/components/schemas/") -> None:
        self.form = form
        self.found: dict[str, Schema] = {}
        self._prefix = prefix

    def of(self, hint: Any) -> Schema:
        """The schema of a type."""
        plain, rules, _ = unwrap(hint)
        origin = get_origin(plain) or plain
        if origin in (Union, UnionType):
            return self._union(get_args(plain))
        schema = self._plain(plain, origin)
        return {**schema, **_limits(origin, rules)}

    def _plain(self, plain: Any, origin: Any) -> Schema:
        if origin in _SCALARS:
            return dict(_SCALARS[origin])
        if origin is bytes:
            return dict(_NUMBERS) if self.form is Form.PUBLIC else {"type": "string", "format": "byte"}
        if origin is NoneType:
            return {"type": "null"}
        if origin is dict:
            return {"type": "object", "additionalProperties": self.of(get_args(plain)[1])}
        if origin in (tuple, list, frozenset):
            return {"type": "array", "items": self.of(get_args(plain)[0])}
        if issubclass(origin, Enum):
            return {"type": "string", "enum": [member.value for member in origin]}
        assert issubclass(origin, msgspec.Struct), origin
        return self._reference(origin)

    def _union(self, members: tuple[Any, ...]) -> Schema:
        return {"anyOf": [self.of(member) for member in members]}

    def _reference(self, kind: type[msgspec.Struct]) -> Schema:
        """A reference to the schema of a struct, which is written when it is first asked for."""
        if self.form is Form.PUBLIC and kind in BARE:
            return {"type": "string"}
        name = f"{self.form.title()}{kind.__name__}"
        if name not in self.found:
            self.found[name] = {}
            self.found[name] = self._struct(kind)
        return {"$ref": f"{self._prefix}{name}"}

    def _struct(self, kind: type[msgspec.Struct]) -> Schema:
        summary = (kind.__doc__ or "").strip().partition("\n")[0]
        schema = self._public(kind) if self.form is Form.PUBLIC else self._tagged(kind)
        return {"description": summary, **schema}

    def _public(self, kind: type[msgspec.Struct]) -> Schema:
        if kind is StreamFrame:
            return _FRAME
        tag = kind.__struct_config__.tag
        if tag is None or not is_external(kind):
            return self._tagged(kind)
        if not kind.__struct_fields__:
            return {"const": tag}
        hints = get_type_hints(kind, include_extras=True)
        inner = self.of(hints[NEWTYPES[kind]]) if kind in NEWTYPES else self._fields(kind)
        return {
            "type": "object",
            "properties": {str(tag): inner},
            "required": [str(tag)],
            "additionalProperties": False,
        }

    def _tagged(self, kind: type[msgspec.Struct]) -> Schema:
        schema = self._fields(kind)
        config = kind.__struct_config__
        if config.tag is not None and config.tag_field is not None:
            schema["properties"] = {config.tag_field: {"const": config.tag}, **schema["properties"]}
            schema["required"] = [config.tag_field, *schema.get("required", [])]
        return schema

    def _fields(self, kind: type[msgspec.Struct]) -> Schema:
        hints = get_type_hints(kind, include_extras=True)
        digits = DIGITS.get(kind, ()) if self.form is Form.PUBLIC else ()
        properties = {
            field.name: _DIGITS_SCHEMA if field.name in digits else self.of(hints[field.name])
            for field in msgspec.structs.fields(kind)
        }
        required = [field.name for field in msgspec.structs.fields(kind) if field.required]
        schema: Schema = {"type": "object", "properties": properties}
        return {**schema, "required": required} if required else schema


_DIGITS_SCHEMA: Final[Schema] = {"type": ["string", "null"], "pattern": "^[0-9]+$"}


def _limits(origin: Any, rules: dict[str, Any]) -> Schema:
    found = {_LIMITS[name]: rules[name] for name in _LIMITS.keys() & rules.keys()}
    least, most = _SIZES.get(origin, _ITEMS)
    if "min_length" in rules:
        found[least] = rules["min_length"]
    if "max_length" in rules:
        found[most] = rules["max_length"]
    if "pattern" in rules:
        found["pattern"] = _portable(rules["pattern"])
    return found


def _portable(pattern: str) -> str:
    """A pattern without what only Python knows. JSON has no lone surrogates to speak of."""
    return pattern.replace(r"\A", "^").replace(r"\Z", "$").replace(r"\ud800-\udfff", "")
