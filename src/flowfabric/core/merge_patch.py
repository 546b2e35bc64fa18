"""JSON merge patches: how a frame in summary mode changes the summary document of its stream.

The rules are those of RFC 7396. ``null`` deletes a member, an object is merged member by member,
anything else replaces what was there. An empty object and an empty array stay what they are.

A patch cannot set a member to ``null``, because that deletes it, so the text ``__ff_null__``
stands for a null that is to be stored.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from flowfabric import errors

NULL_SENTINEL: Final = "__ff_null__"
MERGE_DEPTH_MAX: Final = 16
"""How deep objects are merged; the patch itself has depth 0."""
VALUE_DEPTH_MAX: Final = 32
"""How deep a patch may nest in all, arrays included."""
DOCUMENT_BYTES_MAX: Final = 1024 * 1024

EMPTY_DOCUMENT: Final = b"{}"

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def patch_document(document: bytes, patch: bytes) -> bytes:
    """Merge a patch into a document; both are JSON objects as bytes.

    Raises:
        InvalidInput: the patch is not JSON, not an object, or nested too deeply.
        RetentionLimitExceeded: the document would become too large.
        Corruption: the document is not a JSON object.
    """
    merged = _encode(merge(_parse_document(document), _parse_patch(patch)))
    if len(merged) > DOCUMENT_BYTES_MAX:
        rule = f"the summary document may have at most {DOCUMENT_BYTES_MAX} bytes"
        raise errors.RetentionLimitExceeded(field="payload", value=len(merged), rule=rule)
    return merged


def merge(target: Any, patch: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """Merge a patch into a value; a value that is not an object counts as an empty one.

    Raises:
        InvalidInput: the patch is nested too deeply.
    """
    if depth > MERGE_DEPTH_MAX:
        raise _too_deep()
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            merged[name] = merge(merged.get(name), value, depth + 1)
        else:
            merged[name] = _stored(value, depth + 1)
    return merged


def _stored(value: Any, depth: int) -> Any:
    """The value as it is kept: every sentinel in it has become null."""
    if depth > VALUE_DEPTH_MAX:
        raise _too_deep()
    if value == NULL_SENTINEL:
        return None
    if isinstance(value, list):
        return [_stored(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {name: _stored(item, depth + 1) for name, item in value.items()}
    return value


def _parse_patch(payload: bytes) -> dict[str, Any]:
    try:
        patch = _decode(payload)
    except RecursionError:
        raise _too_deep() from None
    except (msgspec.DecodeError, ValueError) as error:
        raise errors.InvalidInput(field="payload", rule="a merge patch must be JSON") from error
    if not isinstance(patch, dict):
        raise errors.InvalidInput(field="payload", rule="a merge patch must be a JSON object")
    return patch


def _parse_document(document: bytes) -> dict[str, Any]:
    try:
        parsed = _decode(document)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise errors.Corruption(field="summary", rule="the stored summary is not JSON") from error
    if not isinstance(parsed, dict):
        raise errors.Corruption(field="summary", rule="the stored summary is not a JSON object")
    return parsed


def _too_deep() -> errors.InvalidInput:
    return errors.InvalidInput(field="payload", rule="patch_depth_exceeded")
