"""The gates' figures beside their limits, for people."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from unified_embedding.engine.gates import gates
from unified_embedding.spec import EmbedderSpec


def report(console: Console, figures: gates.Figures, spec: EmbedderSpec, precision: str) -> bool:
    """Print the figures beside their limits; True when the engine may be installed."""
    limits = gates.TOLERANCES[precision]
    table = Table(title=f"gates over {figures.images} pictures, against onnxruntime fp32")
    for column in ("figure", "measured", "limit"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for row in rows(figures, limits):
        table.add_row(*row)
    console.print(table)
    found = gates.failures(figures, limits)
    if spec.random:
        console.print("random weights: these figures mean nothing and nothing is gated on them")
        return figures.finite and figures.repeatable
    for sentence in found:
        console.print(f"[red]gate failed:[/] {sentence}", highlight=False)
    return not found


def rows(figures: gates.Figures, limits: gates.Tolerances) -> Iterator[tuple[str, str, str]]:
    """Each figure, what was measured, and its limit."""

    def shown(limit: float | None, sign: str, percent: bool = False) -> str:
        if limit is None:
            return "reported"
        return f"{sign} {limit:.2%}" if percent else f"{sign} {limit:g}"

    yield "cosine, worst", f"{figures.cosine_worst:.6f}", shown(limits.cosine_worst, ">=")
    yield "cosine, mean", f"{figures.cosine_mean:.6f}", shown(limits.cosine_mean, ">=")
    yield "bits flipped, mean", f"{figures.flips_mean:.3%}", shown(limits.flips_mean, "<=", True)
    yield "bits flipped, worst", f"{figures.flips_worst:.3%}", shown(limits.flips_worst, "<=", True)
    yield "largest |x| flipped", f"{figures.flip_at:.4f}", shown(limits.flip_at, "<=")
    yield "float top-10 overlap", f"{figures.neighbours:.4f}", shown(limits.neighbours, ">=")
    unit = "query" if limits.in_queries else "of the queries"
    for name, value in figures.recall.items():
        limit = "reported" if name == "asymmetric" else f"loss <= {limits.recall_loss:g} {unit}"
        known = figures.recall_reference[name]
        yield f"R@1 {name} (fp32 {known:.3f})", f"{value:.3f}", limit
