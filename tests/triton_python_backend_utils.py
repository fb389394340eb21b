"""A stand-in for Triton's module of this name, which exists inside its stub process only.

The models run in the real server in tests/e2e. Here they run under the production image's
Python and numpy, for which the embedded server has no working stub.
"""

import queue
from typing import Any, ClassVar

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonError:
    INTERNAL = 1
    INVALID_ARG = 3
    CANCELLED = 7

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


class Logger:
    errors: ClassVar[list[str]] = []

    @classmethod
    def log_error(cls, message: str) -> None:
        cls.errors.append(message)


class Metric:
    def __init__(self, labels: dict[str, str], buckets: list[float] | None = None) -> None:
        self.labels, self.buckets = labels, buckets
        self.value, self.observed = 0.0, []

    def increment(self, by: float) -> None:
        self.value += by

    def set(self, value: float) -> None:
        self.value = value

    def observe(self, value: float) -> None:
        self.observed.append(value)


class MetricFamily:
    COUNTER, GAUGE, HISTOGRAM = range(3)
    all: ClassVar[list["MetricFamily"]] = []

    def __init__(self, name: str, description: str, kind: int) -> None:
        self.name, self.kind, self.metrics = name, kind, []
        self.all.append(self)

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:  # noqa: N802
        assert (buckets is not None) == (self.kind == self.HISTOGRAM)
        self.metrics.append(Metric(labels, buckets))
        return self.metrics[-1]


class Tensor:
    def __init__(self, name: str, rows: Any) -> None:
        self.name, self.rows = name, rows

    def as_numpy(self) -> Any:
        return self.rows


class InferenceResponse:
    def __init__(self, output_tensors: Any = (), error: TritonError | None = None) -> None:
        self.outputs = {tensor.name: tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class Sender:
    """Takes the answer of a request that another thread works on."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[InferenceResponse] = queue.SimpleQueue()

    def send(self, answer: InferenceResponse, flags: int) -> None:
        assert flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self.answers.put(answer)


class Request:
    def __init__(self, name: str, rows: Any, parameters: str = "") -> None:
        self.tensors, self.text = {name: Tensor(name, rows)}, parameters
        self.sender = Sender()

    def get_response_sender(self) -> Sender:
        return self.sender

    def parameters(self) -> str:
        return self.text


def get_input_tensor_by_name(request: Request, name: str) -> Tensor:
    return request.tensors[name]
