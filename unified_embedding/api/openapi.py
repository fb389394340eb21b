"""The routes as an OpenAPI 3.1 document, and as a page that needs nothing from elsewhere."""

import html
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import msgspec

from unified_embedding.api import wire
from unified_embedding.api.pictures import ImageObject
from unified_embedding.api.problems import Error

_SCHEMA: Final = "#/components/schemas/{name}"
_ALWAYS: Final = (
    wire.EmbeddingsRequest,
    ImageObject,
    wire.Embeddings,
    wire.ServedModels,
    wire.Status,
    Error,
)
_SEARCHING: Final = (wire.SearchRequest, wire.Hits, wire.Index)
_BODY: Final = msgspec.json.schema(wire.EmbeddingsRequest)["$defs"]["EmbeddingsRequest"]
_OPTIONS: Final = [
    {
        "name": name,
        "in": "query",
        "required": False,
        "description": "Of a picture that is the body; JSON says it in a field.",
        "schema": schema,
    }
    for name, schema in {
        "model": _BODY["properties"]["model"],
        "encoding_format": _BODY["properties"]["encoding_format"],
        "embedding_type": {"type": "string", "enum": ["float", "ubinary", "float,ubinary"]},
        "crop": {"type": "string", "description": "x0,y0,x1,y1"},
    }.items()
]
_ERRORS: Final = {
    "400": "A field or a picture is wrong; `param` names it.",
    "401": "No key, or an unknown one.",
    "404": "This model, version or id is not here.",
    "408": "The upload stood still.",
    "409": "The index is of another version.",
    "413": "The body is too large.",
    "415": "Another content type.",
    "422": "A picture ended the embedding server's process twice; it is not tried again.",
    "429": "Too much work; try again after `Retry-After` seconds.",
    "500": "A fault of this server.",
    "502": "The embedding server answered something unexpected.",
    "503": "No embedding server is ready; try again after `Retry-After` seconds.",
    "504": "No answer within the time that the caller allows.",
}


def _json(kind: type) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _SCHEMA.format(name=kind.__name__)}}}


def _errors(*statuses: str) -> dict[str, Any]:
    content = _json(Error)
    return {status: {"description": _ERRORS[status], "content": content} for status in statuses}


def _answer(kind: type, description: str = "") -> dict[str, Any]:
    return {"200": {"description": description or kind.__doc__, "content": _json(kind)}}


def _parameter(name: str, schema: dict[str, Any], where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


@cache
def document(search: bool = True) -> dict[str, Any]:
    """The OpenAPI document; without `search` when there is no index to search."""
    asking = ("401", "429", "502", "503", "504")
    working = ("400", "404", "408", "413", "415", "422", "500", *asking)
    picture = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
    timeout = _parameter("x-request-timeout", {"type": "number", "exclusiveMinimum": 0}, "header")
    kinds = (*_ALWAYS, *_SEARCHING) if search else _ALWAYS
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_SCHEMA)
    ready = "A picture was embedded in the last seconds."
    paths: dict[str, Any] = {
        "/v1/embeddings": {
            "post": _operation(
                "createEmbedding",
                "Pictures in, vectors and packed codes out.",
                _answer(wire.Embeddings),
                working,
                parameters=[timeout, *_OPTIONS],
                requestBody=_body(wire.EmbeddingsRequest, picture),
            )
        },
        "/v1/models": {
            "get": _operation(
                "listModels",
                "What is served.",
                _answer(wire.ServedModels),
                asking,
            )
        },
        "/v1/models/{model}": {
            "get": _operation(
                "retrieveModel",
                "One model.",
                _answer(wire.ServedModel),
                ("404", *asking),
                parameters=[_parameter("model", {"type": "string"}, "path")],
            )
        },
        "/v1/health/live": {
            "get": _operation(
                "live",
                "This process answers.",
                _answer(wire.Status, "This process answers."),
            )
        },
        "/v1/health/ready": {
            "get": _operation("ready", ready, _answer(wire.Status, ready), ("503",))
        },
    }
    if search:
        paths["/v1/search"] = {
            "post": _operation(
                "search",
                "A picture, an id or a vector in, hits of the index out.",
                _answer(wire.Hits),
                (*working, "409"),
                parameters=[timeout],
                requestBody=_body(wire.SearchRequest),
            )
        }
        paths["/v1/index"] = {
            "get": _operation(
                "retrieveIndex",
                "What is searched.",
                _answer(wire.Index),
                ("401",),
            )
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Unified embedder",
            "version": "1",
            "description": "Embeddings of pictures, in the shape of OpenAI's embeddings API.",
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": schemas,
        },
        "security": [{"key": []}, {}],
    }


def _operation(
    name: str, summary: str, answer: dict[str, Any], errors: Sequence[str] = (), **further: Any
) -> dict[str, Any]:
    responses = {**answer, **_errors(*sorted(errors))}
    return {"operationId": name, "summary": summary, **further, "responses": responses}


def _body(kind: type, others: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    return {"required": True, "content": {**_json(kind), **others}}


_STYLE: Final = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 52rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: .9em ui-monospace, monospace } pre { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
td, th { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0 }
td, th { border-top: 1px solid #8884 }
h2 { margin-top: 2.5rem } .muted { opacity: .7 }
"""


@cache
def page(search: bool = True) -> str:
    """The document as a page."""
    said = document(search)
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{said["info"]["title"]}'
        '</title><meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style><h1>{said['info']['title']}</h1>"
        f"<p>{said['info']['description']} The document for programs: "
        '<a href="/openapi.json">/openapi.json</a>.</p>'
    ]
    schemas = said["components"]["schemas"]
    for path, methods in said["paths"].items():
        for method, operation in methods.items():
            parts.append(
                f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                f"<p>{html.escape(operation['summary'])}</p>"
            )
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]
                parts.append(_fields(schemas, content["application/json"]["schema"]))
            answers = operation["responses"].items()
            rows = [(status, answer["description"]) for status, answer in answers]
            parts.append(_table(("status", ""), rows))
    return "".join(parts)


def _fields(schemas: dict[str, Any], schema: dict[str, Any]) -> str:
    found = schemas[schema["$ref"].rpartition("/")[2]]
    rows = []
    for name, field in found["properties"].items():
        default = f"default {field['default']}" if field.get("default") is not None else ""
        note = "; ".join(part for part in (field.get("description", ""), default) if part)
        rows.append((name, f"{_kind(field)}. {note}" if note else _kind(field)))
    return _table(("field", ""), rows)


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " | ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}"
    kind = schema.get("type", "")
    return " | ".join(kind) if isinstance(kind, list) else str(kind)


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(text)}</td></tr>"
        for name, text in rows
    )
    return f"<table><tr><th>{head[0]}</th><th>{head[1]}</th></tr>{cells}</table>"
