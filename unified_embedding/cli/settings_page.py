"""docs/settings.md: every setting, with the default that the code has and who reads it.

    python build/settings_page.py

What a setting means stands here, in `ENVIRONMENT` and `MAKE`. Its default, and who reads it, are
taken from the source. A test fails when the page is older than the code, and when the code reads a
variable that has no meaning here.
"""

import ast
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from unified_embedding.checkout import ROOT
from unified_embedding.client import _connection
from unified_embedding.engine.choice import Choice
from unified_embedding.engine.embedder_config import EmbedderConfig
from unified_embedding.image.limits import DEFAULT_LIMITS, SETTINGS
from unified_embedding.measure.files import write_text
from unified_embedding.spec import MAX_BATCH_SIZE

PAGE: Final = ROOT / "docs" / "settings.md"

HEAD: Final = """\
# Which settings are there?

Written by `python build/settings_page.py` from the code that reads them; do not edit. `--help` of a
program lists its other options. Where an option and a variable set the same thing, the option wins.

## Flags of programs that listen

""".splitlines()
KEPT: Final = """\
A further `make engine` keeps what is not given of these, and of `MODEL`, `TARGET` and `PRECISION`
([engines.md](engines.md#what-stays-installed)). The defaults hold for the first one.
""".splitlines()
LIMITS_HEAD: Final = """\
A variable of the server's environment; or a parameter in `preprocess/config.pbtxt`, named in small
letters without the prefix (`max_image_bytes`). Back-fill, search and page read the limit for the
bytes of one picture too.""".splitlines()
MODELS_HEAD: Final = """\
Set in the `config.pbtxt` of each model. `make engine` writes that of `embedder`, with the values
that `make tune` found on this machine (`build/tuning.json`).""".splitlines()
MAKE_HEAD: Final = """\
`make TARGET NAME=value`. The variables for engines, load tests and benchmarks above can be given
the same way.""".splitlines()

LIMITS: Final = {
    "max_bytes": "bytes of one encoded picture",
    "max_pixels": (
        "pixels of one picture that is decoded in full; pixels that a JPEG keeps at a reduced scale"
    ),
    "max_jpeg_pixels": "pixels of a baseline JPEG",
    "max_progressive_pixels": "pixels of a progressive JPEG",
    "max_request_bytes": "bytes of all encoded pictures of a request",
    "max_request_pixels": (
        "pixels that decoding a request's pictures costs ([how they count](serving.md#limits))"
    ),
    "max_pixels_in_work": (
        "pixels that the large requests of one `preprocess` process may cost together"
    ),
    "formats": "the formats that are read, joined by commas",
}
"""Meaning and unit of each field of `Limits`."""

ENGINE_SECTION: Final = "Building an engine"
ENVIRONMENT: Final[Mapping[str, Mapping[str, str]]] = {
    "The server": {
        "UNIFIED_EMBEDDING_OPERATOR_KEY": (
            "key, 16 to 128 letters, digits, `-` and `_`, that opens model control, shared "
            "memory, trace and log settings; by default a random one that nobody knows"
        ),
        "PREPROCESS_INSTANCES": (
            "processes that decode pictures, of `serve --engine`; by default 3, and where a GPU "
            "computes one for each core"
        ),
        "OTEL_EXPORTER_OTLP_ENDPOINT": (
            "address of a collector (OTLP over HTTP), without `v1/traces`: calls that bring a "
            "trace are traced ([monitoring.md](monitoring.md#traces))"
        ),
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "the same, as the whole address",
        "OTEL_SERVICE_NAME": "what the models' own spans call the server",
        "PATH": "searched for another `tritonserver`, which then runs in place of the embedded one",
        "LD_LIBRARY_PATH": "handed on to the embedded Triton, behind its own libraries",
    },
    "Clients, back-fill, index, search and page": {
        "UNIFIED_EMBEDDING_URL": "gRPC address of the server, HOST:PORT",
        "UNIFIED_EMBEDDING_TLS": "1 connects by TLS, trusting the roots that gRPC brings",
        "UNIFIED_EMBEDDING_TLS_CA": "PEM file of the roots to trust; connects by TLS",
        "UNIFIED_EMBEDDING_TLS_CERT": "mutual TLS: PEM file of the client's certificate",
        "UNIFIED_EMBEDDING_TLS_KEY": "mutual TLS: PEM file of the client's key",
        "UNIFIED_EMBEDDING_TOKEN": "sent with every call as `authorization: Bearer TOKEN`",
        "UNIFIED_EMBEDDING_MODEL": "the Triton model to call; by default `unified_embedding`",
        "UNIFIED_EMBEDDING_INDEX": "folder of the index",
        "grpc_proxy": "proxy that gRPC connects through; after it `https_proxy`, then `http_proxy`",
        "https_proxy": "see `grpc_proxy`",
        "http_proxy": "see `grpc_proxy`",
        "no_grpc_proxy": "hosts that are reached without a proxy; after it `no_proxy`",
        "no_proxy": "see `no_grpc_proxy`",
        "RAY_TMPDIR": "where Ray keeps its files; error messages name the logs in it",
    },
    ENGINE_SECTION: {
        "TUNING": "file with the values that `make tune` found",
        "FRONTEND": "tensorrt: `onnx`, or `torch-tensorrt`, which needs a GPU",
        "OPTIMUM_BATCH": (
            "tensorrt, tensorrt-rtx: pictures in the batch that kernels are chosen for, 1 to 16"
        ),
        "OPTIMIZATION_LEVEL": "tensorrt, tensorrt-rtx: 0 to 5; 4 and 5 search longer",
        "VERSION_COMPATIBLE": "tensorrt: 1 builds a plan that later versions load too",
        "CUDA_GRAPHS": "tensorrt: 1 lets Triton replay recorded launches",
        "COMPUTE_CAPABILITIES": (
            "tensorrt-rtx: for instance `8.6 8.9`; by default TensorRT-RTX chooses"
        ),
        "CHECK_USER": (
            "`UID:GID` that `make gpu-check` runs as in its container; set by the program"
        ),
    },
    "Load tests and benchmarks": {
        "HOST": "gRPC address of a server that runs already; empty: the program starts one",
        "RATE": (
            "open loop: requests per second, steps `50@10,100@10` or ramps `10..300@60`; empty: "
            "0.6 of what the closed loop reached"
        ),
        "USERS": "closed loop: callers",
        "DURATION": "seconds of one measurement",
        "SLO_P99_MS": (
            "milliseconds within which 99 % of the requests must be answered; 0: no limit"
        ),
        "FULL": "1 measures longer, and more",
        "LOADTEST_OUTPUTS": "outputs to ask for",
        "LOADTEST_IMAGES": "folder of pictures to send, or `mix` for generated ones of many sizes",
        "LOADTEST_IMAGES_PER_REQUEST": "pictures in one request",
        "LOADTEST_THINK_TIME": "ClosedLoop: seconds a user waits after each answer",
        "LOADTEST_RATE": "OpenLoop: requests per second of each user, steps or ramps",
        "LOADTEST_MAX_INFLIGHT": (
            "OpenLoop: requests of one user in flight; those due beyond it are dropped and fail "
            "the run"
        ),
        "LOADTEST_REQUEST_TIMEOUT": "seconds until a request counts as failed",
        "LOADTEST_WARM_UP": "seconds after the start that no figure includes",
        "LOADTEST_SEED": "seed of the draw of pictures and moments",
        "LOADTEST_REPORT": "folder for report.html, report.json and timeline.csv; empty: none",
        "CI": "set: `make fuzz` reports slow answers without failing for them",
    },
    "Data and training": {
        "UNIFIED_EMBEDDING_DATA": (
            "folder of fetched and rendered pictures; by default `unified-embedding` in the "
            "cache folder"
        ),
        "XDG_CACHE_HOME": "the cache folder; by default `~/.cache`",
        "OMP_NUM_THREADS": (
            "threads of numerical libraries; the embedded server sets 1 for its model processes "
            "where you set nothing (`OPENBLAS_NUM_THREADS` and `MKL_NUM_THREADS` too)"
        ),
        "RANK": "set by torchrun: this is one of several processes",
        "LOCAL_RANK": "set by torchrun: which GPU of this machine",
    },
}
"""Meaning and unit of each environment variable that the code reads, but for the limits."""

SHELL: Final = {
    "MODEL": "folder of the embedder that the service `engine` builds",
    "REPOSITORY": "folder inside the container that gets the engine",
    "CHECK_USER": "`UID:GID` of the service `gpu-check`",
    "PYTHON": "Python that `.venv` is made with, or that mypy runs in",
}
"""Meaning of each variable of deploy/ and of the shell scripts."""

MAKE: Final = {
    "PREFIX": "`make engine`: prefix of the model names of a further embedder",
    "MODEL": "folder of the embedder, with `embedder.onnx` and `spec.json`",
    "TARGET": "`auto`, `openvino`, `tensorrt` or `tensorrt-rtx`",
    "PRECISION": "`auto`, `fp32`, `bf16`, `int8` or `fp16`",
    "CONFIG": "`make train`: the run",
    "ARGS": (
        "`make train`: `key=value` overrides; `make evaluate`: its options; `make test`, "
        "`make drills`: arguments for pytest"
    ),
    "EMBEDDERS": "`make bench`: embedders to measure, joined by commas",
    "MINUTES": "`make fuzz`: minutes",
    "SEED": "`make fuzz`: which cases are drawn",
    "ONLY": "`make fuzz`: targets, joined by commas; empty: all",
    "REPLAY": "`make fuzz`: a case that was kept in `out/fuzz`, run again",
}
"""Meaning of each variable of the Makefile itself."""

SERVER_FLAGS: Final = (
    (
        "--model-repository",
        "required",
        "folder of the models; this project's is `model_repository`",
    ),
    ("--http-port, --grpc-port, --metrics-port", "8000, 8001, 8002", "TCP ports"),
    (
        "--http-address, --grpc-address, --metrics-address",
        "127.0.0.1",
        "addresses to listen on; an installed NVIDIA server keeps its own default, 0.0.0.0",
    ),
    ("--exit-timeout-secs", "30", "seconds that an orderly stop may take"),
    ("--log-verbose", "0", "log level: 1 and more log every request"),
    ("--log-info, --log-warning, --log-error", "true", "which messages are logged"),
    ("--log-file", "stderr", "where they go"),
    ("--log-format", "default", "`default` or `ISO8601` times"),
    (
        "--http-restricted-api, --grpc-restricted-protocol",
        "operator key",
        "what asks for a key ([serving.md](serving.md#flags)); yours replace ours",
    ),
    ("`unified-embedding api` --host, --port", "127.0.0.1, 8088", "where the HTTP API listens"),
    ("`unified-embedding gateway run` --address, --port", "127.0.0.1, 8443", "where it listens"),
    ("`clients/page.py` --host, --port", "127.0.0.1, 8080", "where the search page listens"),
    ("`locust` --web-host, --web-port", "see `--help`, 8089", "where Locust's page listens"),
)
"""Flags that matter here; tritonserver takes every flag that Triton has."""

# A file that reads variables in a loop: the tuples that hold their names.
BY_LOOP: Final = {"unified_embedding/client/_proxy.py": ("_PROXIES", "_EXCEPTIONS")}
_ENVIRONMENTS: Final = ("os.environ", "environment")


def page() -> str:
    """The text of docs/settings.md."""
    read = variables()
    lines = [*HEAD, *_table(("flag", "default", "meaning"), SERVER_FLAGS)]
    lines += ["", "## Limits of a picture and of a request", "", *LIMITS_HEAD, ""]
    lines += _table(("variable", "default", "meaning"), _limits())
    lines += ["", "## Models", "", *MODELS_HEAD, ""]
    lines += _table(("model", "setting", "default", "meaning"), _models())
    tables = {name: (meanings, read) for name, meanings in ENVIRONMENT.items()}
    tables["Containers and shell scripts"] = (SHELL, shell_variables())
    for section, (meanings, places) in tables.items():
        lines += ["", f"## {section}", ""]
        lines += [*KEPT] if section == ENGINE_SECTION else []
        lines += _table(
            ("variable of the environment", "default", "meaning", "read by"),
            [
                (f"`{name}`", _default(name, places[name]), meaning, _readers(places[name]))
                for name, meaning in meanings.items()
            ],
        )
    defaults = make_variables()
    lines += ["", "## Variables of `make`", "", *MAKE_HEAD, ""]
    lines += _table(
        ("variable", "default", "meaning"),
        [
            (f"`{name}`", _code(defaults[name] or first_choice(name)), meaning)
            for name, meaning in MAKE.items()
        ],
    )
    return "\n".join(lines) + "\n"


def variables() -> dict[str, list[tuple[str, str]]]:
    """Every variable of the environment that the code reads: name -> (file, default), sorted.

    The variables of the limits are left out; they have a table of their own.
    """
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for path in sources():
        if not re.search(r"environ|getenv|envvar|_OPTIONS|cli\.options", (ROOT / path).read_text()):
            continue
        for name, default in (*options(path), *reads(path), *load_test_options(path)):
            if name not in SETTINGS:
                found[name].add((path, default))
    for places in found.values():
        if len(places) > 1:  # options.py reads nothing; the programs that share its options do
            places.discard(("unified_embedding/cli/options.py", ""))
    return {name: sorted(places) for name, places in found.items()}


def make_variables() -> dict[str, str]:
    """The variables that the Makefile itself uses: name -> default; its tools are left out."""
    text = (ROOT / "Makefile").read_text()
    defaults = dict(re.findall(r"^([A-Z]+) *\?= *(.*)$", text, re.MULTILINE))
    used = set(re.findall(r"\$\(([A-Z]+)\)", text)) - {"PY", "PIP"}
    return {name: defaults.get(name, "") for name in used | set(defaults)}


def shell_variables() -> dict[str, list[tuple[str, str]]]:
    """The variables with a default in deploy/compose.yaml and the shell scripts."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for path in ("deploy/compose.yaml", *_tracked("*.sh")):
        for name, default in re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / path).read_text()):
            found[name].append((path, default))
    return found


@cache
def sources() -> tuple[str, ...]:
    """The Python files of the checkout outside tests/."""
    return tuple(path for path in _tracked("*.py") if not path.startswith("tests/"))


def _tracked(pattern: str) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for path in told.stdout.splitlines() if (ROOT / path).exists()]


def options(path: str) -> Iterator[tuple[str, str]]:
    """The variables that a program's options name by `envvar=`, each with the option's default."""
    tree = _tree(path)
    yield from ((name, "") for name in _envvars(tree))
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        arguments = function.args.args
        given = function.args.defaults
        padded = [*[None] * (len(arguments) - len(given)), *given]
        for argument, default in zip(arguments, padded, strict=True):
            annotation = argument.annotation
            if isinstance(annotation, ast.Name):
                alias = _definition(annotation.id, path)
                annotation = alias[0] if alias else None
            for name in _envvars(annotation):
                yield name, "" if default is None else _value(default, path)


def reads(path: str) -> Iterator[tuple[str, str]]:
    """The variables that a file reads or sets in `os.environ` by name.

    Raises:
        ValueError: the name is computed, so that the page cannot list it.
    """
    for names in BY_LOOP.get(path, ()):
        yield from ((name, "") for name in _value(ast.Name(names), path).split(","))
    for node in ast.walk(_tree(path)):
        name: ast.expr | None = None
        default = ""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            whole = ast.unparse(node.func)
            if whole == "os.getenv" or (
                node.func.attr in ("get", "setdefault", "pop")
                and ast.unparse(node.func.value) in _ENVIRONMENTS
            ):
                name = node.args[0]
                default = _value(node.args[1], path) if len(node.args) > 1 else ""
        elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            name = node.slice
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "os.environ":
            name = node.left
        if name is not None and path not in BY_LOOP:
            text = _value(name, path)
            if not re.fullmatch(r"\w+", text):
                raise ValueError(f"{path}:{name.lineno}: reads the environment by a computed name")
            yield text, default


def load_test_options(path: str) -> Iterator[tuple[str, str]]:
    """The table of Locust's further options: (option, default, variable, help)."""
    table = _definition("_OPTIONS", path)
    for node in ast.walk(table[0]) if table else ():
        if isinstance(node, ast.Tuple) and len(node.elts) == 4:
            yield _value(node.elts[2], path), _value(node.elts[1], path)


def _models() -> list[tuple[str, str, str, str]]:
    rows = []
    for path in _tracked("model_repository/*/config.pbtxt"):
        model, text = Path(path).parent.name, (ROOT / path).read_text()
        instances = re.search(r"count: (\d+)", text)
        batch = re.search(r"max_batch_size: (\d+)", text)
        if batch and int(batch[1]):
            rows.append(
                (f"`{model}`", "`max_batch_size`", batch[1], "pictures in one request or batch")
            )
        if instances:
            rows.append((f"`{model}`", "`instance_group`", instances[1], "processes"))
    config = EmbedderConfig("python", "KIND_CPU")
    pictures = _value(ast.Name("SLICE"), "unified_embedding/serving/openvino_engine.py")
    return [
        *rows,
        ("`embedder`", "`max_batch_size`", str(MAX_BATCH_SIZE), "pictures in one batch"),
        ("`embedder`", "`instance_group`", str(config.instances), "copies of the engine"),
        (
            "`embedder`",
            "`max_queue_delay_microseconds`",
            str(config.queue_delay_us),
            "microseconds a request waits for others to share its batch",
        ),
        ("`embedder`", "`threads`", "one for each core", "OpenVINO: threads of the engine"),
        ("`embedder`", "`streams`", "one for each core", "OpenVINO: slices computed at once"),
        ("`embedder`", "`slice`", pictures, "OpenVINO: pictures in a slice"),
    ]


def _limits() -> list[tuple[str, str, str]]:
    rows = []
    for name, field in SETTINGS.items():
        value = getattr(DEFAULT_LIMITS, field)
        text = f"{value:,}" if isinstance(value, int) else f"`{','.join(value)}`"
        rows.append((f"`{name}`", text, LIMITS[field]))
    return rows


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [heads, ("---",) * len(heads), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def first_choice(name: str) -> str:
    """The default of what `make engine` keeps from one time to the next; "" for other names."""
    choice = Choice()
    value = (vars(choice) | vars(choice.options)).get(name.lower(), "")
    if isinstance(value, Path):
        return str(value.relative_to(ROOT))
    return str(int(value) if isinstance(value, bool) else value or "")


def _default(name: str, places: list[tuple[str, str]]) -> str:
    """The default, with the programs where they differ."""
    by_value: dict[str, list[str]] = defaultdict(list)
    for path, default in places:
        if Path(path).stem not in by_value[default or first_choice(name)]:
            by_value[default or first_choice(name)].append(Path(path).stem)
    if len(by_value) > 1:
        by_value.pop("", None)
    if len(by_value) == 1:
        return _code(next(iter(by_value)))
    return ", ".join(f"{_code(value)} ({', '.join(who)})" for value, who in by_value.items())


def _readers(places: list[tuple[str, str]]) -> str:
    return ", ".join(dict.fromkeys(f"`{_program(path)}`" for path, _ in places))


def _program(path: str) -> str:
    """The program of which `path` is the body, else `path`."""
    same = [
        other
        for other in sources()
        if other.split("/")[0] in ("build", "clients", "bench", "fuzz")
        and Path(other).name == Path(path).name
    ]
    return same[0] if same and path.split("/")[1] in ("cli", "load") else path


def _code(value: str) -> str:
    return f"`{value}`" if value else "-"


def _envvars(tree: ast.AST | None) -> list[str]:
    nodes = ast.walk(tree) if tree else ()
    keywords = [node for node in nodes if isinstance(node, ast.keyword)]
    return [_variable(one.value) for one in keywords if one.arg == "envvar"]


def _variable(named: ast.expr) -> str:
    """A variable's name: a string, or one of the names in client/_connection.py."""
    if isinstance(named, ast.Attribute):
        return str(getattr(_connection, named.attr))
    return str(ast.literal_eval(named))


@cache
def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_bytes())


def _definition(name: str, path: str) -> tuple[ast.expr, str] | None:
    """What a name stands for in a file, and the file that says so: this one or an imported one."""
    module, _, name = name.rpartition(".")
    for node in _tree(path).body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and node.value and not module:
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if ast.unparse(target) == name:
                return node.value, path
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if alias.name == (module or name):
                    origin = _file(f"{node.module}.{module}" if module else node.module)
                    return _definition(name, origin) if origin else None
    return None


def _file(module: str) -> str | None:
    place = module.replace(".", "/")
    return next((f for f in (f"{place}.py", f"{place}/__init__.py") if f in sources()), None)


def _value(node: ast.expr, path: str) -> str:
    """A default, or the name of a variable, as a reader would write it; "" for the checkout."""
    if isinstance(node, ast.Constant):
        value = node.value
        return f"{value:g}" if isinstance(value, int | float) else str(value or "")
    if isinstance(node, ast.BinOp):  # folders joined by /
        return f"{_value(node.left, path)}/{_value(node.right, path)}".lstrip("/")
    if isinstance(node, ast.Tuple):
        return ",".join(_value(one, path) for one in node.elts)
    if isinstance(node, ast.Call) and len(node.args) == 1:  # str(x), Path(x), ",".join(x)
        return _value(node.args[0], path)
    found = _definition(ast.unparse(node), path)
    return "" if found is None or ast.unparse(node) == "ROOT" else _value(*found)


def program() -> None:
    """Write the page."""
    write_text(PAGE, page())
    print(f"wrote {PAGE.relative_to(ROOT)}")
