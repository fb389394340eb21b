"""Writes the Grafana dashboard beside this file: .venv/bin/python deploy/monitoring/dashboard.py.

Built with Grafana's own types (the extra `deploy`), so that a field it does not know is an error
here. With --check nothing is written: exit code 1 when the file is not what would be.
"""

import json
import sys
from itertools import count
from pathlib import Path
from typing import Final

from grafana_foundation_sdk.builders.common import VizTooltipOptions
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.timeseries import Panel
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh

FILE: Final = Path(__file__).with_suffix(".json")
STEPS: Final = 'job=~"$job", model=~".*(preprocess|embedder|binarizer)"'
ENSEMBLE: Final = 'job=~"$job", model=~".*unified_embedding"'
EVERY_JOB: Final = "embedder_info|unified_embedding_api_pictures_in_work"
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="$source")


def quantiles(metric: str) -> dict[str, str]:
    """The usual percentiles of a histogram."""
    return {
        f"p{percent}": f"histogram_quantile({percent / 100:g}, "
        f'sum by (le) (rate({metric}_bucket{{job=~"$job"}}[$__rate_interval])))'
        for percent in (50, 95, 99)
    }


# Title: unit, explanation, queries by legend.
PANELS: Final[dict[str, dict[str, tuple[str, str, dict[str, str]]]]] = {
    "What callers see": {
        "Pictures": (
            "cps",
            "Pictures embedded a second, by server: at most what `make capacity` measured.",
            {
                "{{instance}}": f"sum by (instance) (rate(nv_inference_count{{{ENSEMBLE}}}"
                "[$__rate_interval]))"
            },
        ),
        "Errors": (
            "percentunit",
            "Share of the calls that failed by fault or overload; the alerts watch it.",
            {
                "{{api}}, 5 minutes": 'embedder:errors:ratio_rate5m{job=~"$job"}',
                "{{api}}, 3 days": 'embedder:errors:ratio_rate3d{job=~"$job"}',
                "budget": "embedder:error_budget:ratio",
            },
        ),
        "Refused, by reason": (
            "reqps",
            "bad_input: the caller's fault. late, busy: too much work. internal: a fault of ours.",
            {
                "{{model}} {{reason}}": "sum by (model, reason) (rate(embedder_refused_total"
                '{job=~"$job"}[$__rate_interval]))'
            },
        ),
        "HTTP API: seconds": (
            "s",
            "From a request's first byte to the answer's last.",
            {
                legend: query.replace('{job=~"$job"}', '{route="/v1/embeddings"}')
                for legend, query in quantiles("unified_embedding_api_request_seconds").items()
            },
        ),
    },
    "Where the time goes": {
        "Waiting in queues": (
            "s",
            "Mean of a call, summed over its steps; the ensemble's own is always 0.",
            {"{{job}}": 'embedder:queue_seconds:mean5m{job=~"$job"}'},
        ),
        "Requests that wait or are worked on": (
            "short",
            "By step. The step with the most is the bottleneck.",
            {"{{model}}": f"sum by (model) (nv_inference_pending_request_count{{{STEPS}}})"},
        ),
        "Decoding a picture": (
            "s",
            "From its bytes to its pixels, before they are resized.",
            quantiles("embedder_decode_duration_seconds"),
        ),
        "Engine, a batch": (
            "s",
            "OpenVINO only: a TensorRT engine is Triton's own, and has its mean on the right.",
            quantiles("embedder_engine_duration_seconds"),
        ),
        "Step, mean": (
            "s",
            "Seconds of computing a request takes in each step.",
            {
                "{{model}}": "sum by (model) (rate(nv_inference_compute_infer_duration_us"
                f"{{{STEPS}}}[$__rate_interval])) / 1e6 / sum by (model) "
                f"(rate(nv_inference_request_success{{{STEPS}}}[$__rate_interval]))"
            },
        ),
        "Pictures in a batch": (
            "short",
            "Mean at the engine: 1 on an idle server, more under load.",
            {
                "{{model}}": "sum by (model) (rate(nv_inference_count"
                '{job=~"$job", model=~".*embedder"}[$__rate_interval])) / sum by (model) '
                '(rate(nv_inference_exec_count{job=~"$job", model=~".*embedder"}'
                "[$__rate_interval]))"
            },
        ),
    },
    "Servers": {
        "Versions and engines": (
            "short",
            "Servers by what they serve: one line for each release.",
            {
                "{{job}} {{model}} {{version}} {{engine}}": "count by (job, model, version, engine)"
                ' (embedder_info{job=~"$job"})'
            },
        ),
        "Up": (
            "short",
            "1 for each server and API that answers Prometheus.",
            {"{{instance}}": 'up{job=~"$job"}'},
        ),
        "Running for": (
            "s",
            "A fall to 0 is a restart.",
            {"{{instance}}": 'time() - embedder_start_time_seconds{job=~"$job"}'},
        ),
        "/dev/shm in use": (
            "percentunit",
            "The models' processes die when it is full.",
            {
                "{{instance}}": 'embedder_shm_used_bytes{job=~"$job"} / '
                'embedder_shm_size_bytes{job=~"$job"}'
            },
        ),
    },
}


def dashboard() -> str:
    """Its JSON."""
    board = (
        Dashboard("Unified embedder")
        .uid("unified-embedder")
        .tags(["unified-embedding"])
        .time("now-6h", "now")
        .refresh("30s")
        .with_variable(DatasourceVariable("source").label("Prometheus").type("prometheus"))
        .with_variable(
            QueryVariable("job")
            .label("release")
            .datasource(SOURCE)
            .query(f'label_values({{__name__=~"{EVERY_JOB}"}}, job)')
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .multi(True)
            .include_all(True)
        )
    )
    ids, tooltip = count(1), VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    for row, panels in PANELS.items():
        board = board.with_row(Row(row).id(next(ids)))
        for title, (unit, text, queries) in panels.items():
            panel = Panel().id(next(ids)).title(title).description(text).datasource(SOURCE)
            panel = panel.unit(unit).min(0).tooltip(tooltip)
            for place, (legend, query) in enumerate(queries.items()):
                target = Dataquery().expr(query).legend_format(legend).ref_id("ABC"[place])
                panel = panel.with_target(target.datasource(SOURCE))
            board = board.with_panel(panel.height(8).span(6))
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    text = dashboard()
    if sys.argv[1:] and FILE.read_text() != text:
        sys.exit(f"{FILE} is stale: run {sys.executable} {__file__}")
    if not sys.argv[1:]:
        FILE.write_text(text)
