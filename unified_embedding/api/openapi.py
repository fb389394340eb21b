"""The routes as an OpenAPI 3.1 document, and as a page that needs nothing from elsewhere."""

import html
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Final

from unified_embedding.api.pictures import MAX_IMAGES
from unified_embedding.api.wire import MAX_K, MODEL

_VECTOR: Final = {"type": "array", "items": {"type": "number"}}
_BASE64: Final = {"type": "string", "contentEncoding": "base64"}
_CROP: Final = {
    "type": "array",
    "items": {"type": "number", "minimum": 0, "maximum": 1},
    "minItems": 4,
    "maxItems": 4,
    "description": "x0, y0, x1, y1 as fractions of the upright picture.",
}
_DATA_URL: Final = {
    "type": "string",
    "pattern": "^data:[^,]*;base64,",
    "description": "data:image/jpeg;base64,...",
}
_OBJECT: Final = {
    "type": "object",
    "required": ["image"],
    "additionalProperties": False,
    "properties": {
        "image": {"type": "string", "description": "Base64, or a data URL."},
        "crop": {"$ref": "#/components/schemas/Crop"},
    },
}
_PICTURE: Final = {
    "anyOf": [
        {"$ref": "#/components/schemas/DataUrl"},
        {"$ref": "#/components/schemas/ImageObject"},
    ]
}
_MODEL_FIELD: Final = {
    "type": "string",
    "default": MODEL,
    "description": f"{MODEL}, or {MODEL}@VERSION to refuse every other version (404).",
}
_CHANCE: Final = {
    "type": ["integer", "null"],
    "description": "From this distance on a hit is no nearer than chance.",
}
_KINDS: Final = {"type": "string", "enum": ["float", "ubinary"]}
_ENCODING: Final = {"type": "string", "enum": ["float", "base64"], "default": "float"}
_OPTIONS: Final = [
    {
        "name": name,
        "in": "query",
        "required": False,
        "description": "Of a picture that is the body; JSON says it in a field.",
        "schema": schema,
    }
    for name, schema in {
        "model": _MODEL_FIELD,
        "encoding_format": _ENCODING,
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


def _errors(*statuses: str) -> dict[str, Any]:
    schema = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {status: {"description": _ERRORS[status], "content": schema} for status in statuses}


def _answer(schema: str, description: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"200": {"description": description, "content": content}}


def _parameter(name: str, schema: dict[str, Any], where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


@cache
def document(search: bool = True) -> dict[str, Any]:
    """The OpenAPI document; without `search` when there is no index to search."""
    asking = ("401", "429", "502", "503", "504")
    working = ("400", "404", "408", "413", "415", "422", "500", *asking)
    picture = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
    timeout = _parameter("x-request-timeout", {"type": "number", "exclusiveMinimum": 0}, "header")
    ready = "A picture was embedded in the last seconds."
    paths: dict[str, Any] = {
        "/v1/embeddings": {
            "post": _operation(
                "createEmbedding",
                "Pictures in, vectors and packed codes out.",
                _answer("Embeddings", "One row for each picture."),
                working,
                parameters=[timeout, *_OPTIONS],
                requestBody=_body("EmbeddingsRequest", picture),
            )
        },
        "/v1/models": {
            "get": _operation(
                "listModels",
                "What is served.",
                _answer("Models", "Versions, widths and limits."),
                asking,
            )
        },
        "/v1/models/{model}": {
            "get": _operation(
                "retrieveModel",
                "One model.",
                _answer("Model", "Its version, width and limits."),
                ("404", *asking),
                parameters=[_parameter("model", {"type": "string"}, "path")],
            )
        },
        "/v1/health/live": {
            "get": _operation(
                "live",
                "This process answers.",
                _answer("Status", "This process answers."),
            )
        },
        "/v1/health/ready": {"get": _operation("ready", ready, _answer("Status", ready), ("503",))},
    }
    if search:
        paths["/v1/search"] = {
            "post": _operation(
                "search",
                "A picture, an id or a vector in, hits of the index out.",
                _answer("Hits", "The nearest rows, nearest first."),
                (*working, "409"),
                parameters=[timeout],
                requestBody=_body("SearchRequest"),
            )
        }
        paths["/v1/index"] = {
            "get": _operation(
                "retrieveIndex",
                "What is searched.",
                _answer("Index", "Its rows, version and metadata."),
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
            "schemas": _schemas(),
        },
        "security": [{"key": []}, {}],
    }


def _operation(
    name: str, summary: str, answer: dict[str, Any], errors: Sequence[str] = (), **further: Any
) -> dict[str, Any]:
    responses = {**answer, **_errors(*sorted(errors))}
    return {"operationId": name, "summary": summary, **further, "responses": responses}


def _body(schema: str, others: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    json = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    return {"required": True, "content": {"application/json": json, **others}}


def _schemas() -> dict[str, Any]:
    integer = {"type": "integer"}
    text = {"type": "string"}
    return {
        "Crop": _CROP,
        "DataUrl": _DATA_URL,
        "ImageObject": _OBJECT,
        "EmbeddingsRequest": {
            "type": "object",
            "required": ["input"],
            "additionalProperties": False,
            "properties": {
                "input": {
                    "anyOf": [
                        *_PICTURE["anyOf"],
                        {
                            "type": "array",
                            "items": _PICTURE,
                            "minItems": 1,
                            "maxItems": MAX_IMAGES,
                        },
                    ]
                },
                "model": _MODEL_FIELD,
                "encoding_format": _ENCODING,
                "embedding_type": {
                    "anyOf": [_KINDS, {"type": "array", "items": _KINDS, "minItems": 1}],
                    "default": "float",
                    "description": "ubinary adds `code`: packed sign bits, base64.",
                },
                "dimensions": {
                    "type": ["integer", "null"],
                    "description": "The embedder's own width, or nothing.",
                },
                "user": {"type": ["string", "null"]},
                "partial": {
                    "type": "boolean",
                    "default": False,
                    "description": "Answer the good pictures, with the others' errors beside.",
                },
            },
        },
        "Embeddings": {
            "type": "object",
            "required": ["object", "data", "model", "version", "engine", "usage"],
            "properties": {
                "object": {"const": "list"},
                "data": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["object", "index", "embedding"],
                        "properties": {
                            "object": {"const": "embedding"},
                            "index": integer,
                            "embedding": {"anyOf": [_VECTOR, _BASE64]},
                            "code": _BASE64,
                        },
                    },
                },
                "errors": {"type": "array", "items": {"$ref": "#/components/schemas/ImageError"}},
                "model": text,
                "version": text,
                "engine": text,
                "usage": {"type": "object", "additionalProperties": integer},
            },
        },
        "SearchRequest": {
            "type": "object",
            "additionalProperties": False,
            "description": "Exactly one of image, id, code and embedding.",
            "properties": {
                "image": _PICTURE,
                "id": {"type": "string", "description": "Of a row of the index."},
                "code": {**_BASE64, "description": "A packed code; needs `version`."},
                "embedding": {
                    "anyOf": [_VECTOR, _BASE64],
                    "description": "As /v1/embeddings answered it; needs `version`.",
                },
                "version": {"type": ["string", "null"]},
                "engine": {
                    "type": ["string", "null"],
                    "description": "That computed code or embedding; another than the index's is "
                    "warned of.",
                },
                "k": {"type": "integer", "minimum": 1, "maximum": MAX_K, "default": 10},
                "where": {
                    "type": ["string", "null"],
                    "description": "A condition on metadata, such as price < 20 and name == 'a'.",
                },
                "order": {
                    "type": "string",
                    "enum": ["code", "asymmetric", "float"],
                    "default": "code",
                    "description": "By differing bits; by the cosine of the vector with the "
                    "nearest codes; by its cosine with every stored embedding.",
                },
                "group": {
                    "type": "boolean",
                    "default": False,
                    "description": "Rows of one code are one hit, the others its `same`.",
                },
                "model": _MODEL_FIELD,
            },
        },
        "Hits": {
            "type": "object",
            "required": ["object", "query", "data", "chance", "version", "engine"],
            "properties": {
                "object": {"const": "list"},
                "query": {
                    "type": "object",
                    "required": ["code"],
                    "properties": {
                        "code": _BASE64,
                        "id": text,
                        "title": text,
                        "metadata": {"type": "object"},
                    },
                },
                "data": {"type": "array", "items": {"$ref": "#/components/schemas/Hit"}},
                "chance": _CHANCE,
                "version": text,
                "engine": text,
                "warning": {"type": "string", "description": "The engines differ."},
            },
        },
        "Hit": {
            "type": "object",
            "required": ["id", "title", "distance", "metadata"],
            "properties": {
                "id": text,
                "title": text,
                "distance": {"type": "integer", "description": "Differing bits."},
                "score": {"type": "number", "description": "Cosine, where `order` is by one."},
                "metadata": {"type": "object"},
                "picture": {"type": "string", "description": "Its address, where there is a page."},
                "code": _BASE64,
                "same": {"type": "array", "items": {"$ref": "#/components/schemas/Hit"}},
                "same_count": integer,
            },
        },
        "Index": {
            "type": "object",
            "required": [
                "object",
                "rows",
                "kind",
                "dimensions",
                "version",
                "engine",
                "embeddings",
                "names",
                "chance",
            ],
            "properties": {
                "object": {"const": "index"},
                "rows": integer,
                "kind": {"type": "string", "enum": ["flat", "ivf", "hnsw"]},
                "dimensions": integer,
                "version": text,
                "engine": text,
                "embeddings": {"type": "boolean", "description": "Whether it stores them."},
                "names": {
                    "type": "array",
                    "items": text,
                    "description": "Of metadata, for `where`.",
                },
                "chance": _CHANCE,
                "recall": {"type": "object"},
            },
        },
        "Models": {
            "type": "object",
            "required": ["object", "data"],
            "properties": {
                "object": {"const": "list"},
                "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
            },
        },
        "Model": {
            "type": "object",
            "required": ["id", "object", "version", "engine", "dimensions", "code_bytes"],
            "properties": {
                "id": text,
                "object": {"const": "model"},
                "version": text,
                "engine": text,
                "compatible_with": {
                    "type": "array",
                    "items": text,
                    "description": "Further versions whose codes its vectors may search.",
                },
                "dimensions": integer,
                "code_bytes": integer,
                "limits": {"type": "object"},
            },
        },
        "Status": {
            "type": "object",
            "required": ["status"],
            "properties": {"status": text},
        },
        "ImageError": {
            "type": "object",
            "required": ["index", "message", "code"],
            "properties": {"index": integer, "message": text, "code": text},
        },
        "Error": {
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["message", "type", "param", "code"],
                    "properties": {
                        "message": text,
                        "type": text,
                        "param": {"type": ["string", "null"]},
                        "code": text,
                        "images": {
                            "type": "array",
                            "items": {"$ref": "#/components/schemas/ImageError"},
                        },
                    },
                }
            },
        },
    }


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
        default = f"default {field['default']}" if "default" in field else ""
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
