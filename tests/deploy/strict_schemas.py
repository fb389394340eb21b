"""Kubernetes resources against published schemas, in which an unknown field is an error.

Kubernetes' own kinds: the strict schemas of PyPI's kubernetes-validate, whose API server version is
`KUBERNETES`. KEDA, Prometheus operator and Gateway API: npm's @kubernetes-models. KServe: the
models of its Python package. The last two are put into out/chart-schemas by `make chart-schemas`.
"""

import ast
import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

KUBERNETES = "1.37"
FETCHED = Path("out/chart-schemas")
KSERVE = re.compile(r"serving\.kserve\.io/")
RAY = re.compile(r"ray\.io/")
_DEFINITIONS = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict/_definitions.json"


def complaints(root: Path, resources: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the resources; skips the test where schemas are not installed."""
    found, others = [], []
    for resource in resources:
        kind = f"{resource['apiVersion']} {resource['kind']}"
        if kind in _kinds():
            found += _core(_kinds()[kind], resource, kind)
        else:
            others.append(resource)
    custom = []
    for resource in others:
        kind = f"{resource['apiVersion']} {resource['kind']}"
        if KSERVE.match(kind):
            found += _typed(fetched(root), resource, _class(resource), kind)
        elif RAY.match(kind):
            # No package has KubeRay's schema: its pods alone are checked.
            found += [
                line
                for pod in pods(resource)
                for line in _core(_core_model("V1PodSpec"), pod, kind)
            ]
        else:
            custom.append(resource)
    return found + (_custom(root, custom) if custom else [])


def fetched(root: Path) -> Path:
    """The folder of schemas that are no pinned package of ours."""
    folder = root / FETCHED
    if not (folder / "node_modules/@kubernetes-models/keda").is_dir() or not shutil.which("node"):
        pytest.skip("schemas of custom resources are not here: `make chart-schemas` (needs npm)")
    return folder


def pods(node: Any) -> list[dict[str, Any]]:
    """Every pod's spec in a resource: what has containers."""
    if isinstance(node, list):
        return [pod for item in node for pod in pods(item)]
    if not isinstance(node, dict):
        return []
    own = [node] if "containers" in node else []
    return own + [pod for item in node.values() for pod in pods(item)]


def _custom(root: Path, resources: list[dict[str, Any]]) -> list[str]:
    run = subprocess.run(
        ["node", Path(__file__).with_name("custom_resources.mjs"), fetched(root)],
        input=json.dumps(resources), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    told: list[str] = json.loads(run.stdout)
    return told


@cache
def _definitions() -> dict[str, Any]:
    return schema_contents(_DEFINITIONS, KUBERNETES)


@cache
def _kinds() -> dict[str, str]:
    """apiVersion and kind of Kubernetes' own resources -> the definition's name."""
    return {
        f"{'/'.join(filter(None, (kind['group'], kind['version'])))} {kind['kind']}": name
        for name, definition in _definitions()["$defs"].items()
        for kind in definition.get("x-kubernetes-group-version-kind", [])
    }


@cache
def _core_validator(definition: str) -> Draft202012Validator:
    definitions = _definitions()
    registry = Resource.from_contents(definitions) @ Registry()
    reference = {"$ref": f"{definitions['$id']}#/$defs/{definition}"}
    return Draft202012Validator(reference, registry=registry)


def _core(definition: str, value: Any, place: str) -> list[str]:
    return [
        f"{place}/{'/'.join(map(str, error.path))}: {error.message}"
        for error in _core_validator(definition).iter_errors(value)
    ]


def _core_model(model: str) -> str:
    """The definition of a model of Kubernetes' Python client."""
    name = model.removeprefix("V1")
    package = "apimachinery.pkg.apis.meta" if name == "ObjectMeta" else "api.core"
    return f"io.k8s.{package}.v1.{name}"


def _class(resource: dict[str, Any]) -> str:
    version = resource["apiVersion"].rpartition("/")[2]
    return f"{version.capitalize()}{resource['kind']}"


@cache
def _model(folder: Path, name: str) -> dict[str, str]:
    """JSON field -> type of a model of KServe's package, which is read and not imported."""
    file = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower() + ".py"
    tree = ast.parse((folder / "python/kserve/models" / file).read_text())
    tables = {
        target.id: ast.literal_eval(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    types, fields = tables["openapi_types"], tables["attribute_map"]
    return {fields[attribute]: types[attribute] for attribute in types}


def _typed(folder: Path, value: Any, kind: str, place: str) -> list[str]:
    if found := re.fullmatch(r"list\[(.*)\]", kind):
        if not isinstance(value, list):
            return [f"{place}: no list"]
        return [line for item in value for line in _typed(folder, item, found[1], place)]
    if found := re.fullmatch(r"dict\(str, (.*)\)", kind):
        if not isinstance(value, dict):
            return [f"{place}: no object"]
        return [
            line
            for name, item in value.items()
            for line in _typed(folder, item, found[1], f"{place}/{name}")
        ]
    if kind in ("str", "int", "bool"):
        right = {"str": str, "int": int, "bool": bool}[kind]
        return [] if type(value) is right else [f"{place}: {value!r} is no {kind}"]
    if re.match(r"V1[A-Z]", kind):
        return _core(_core_model(kind), value, place)
    fields = _model(folder, kind)
    unknown = [f"{place}/{name}: unknown field" for name in value if name not in fields]
    known = [
        line
        for name, item in value.items()
        if name in fields
        for line in _typed(folder, item, fields[name], f"{place}/{name}")
    ]
    return unknown + known
