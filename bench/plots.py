"""The plots of a benchmark: latency against load, batch sizes, where the time goes."""

from typing import Any

from bench.figures import Results
from loadtest.figure import INK, figure

SIZE = (5.4, 3.9)


@figure(SIZE)
def latency(axes: Any, results: Results) -> None:
    """Latency against throughput: closed loop, and arrivals that do not wait for answers."""
    for name, loads, marker in (
        ("closed loop", results.closed, "o"),
        ("Poisson arrivals", results.open, "s"),
    ):
        rates = [load.answers.rate_hz for load in loads.values()]
        for quantile, style in (("p50_ms", "-"), ("p95_ms", "--")):
            values = [getattr(load.answers.latency, quantile) for load in loads.values()]
            axes.plot(rates, values, style, marker=marker, label=f"{name}, {quantile[:3]}")
    best = max(results.alone.policy_hz.values())
    axes.axvline(best, color=INK, ls=":", label=f"in-process {best:.0f}/s")
    axes.set(xlabel="requests/s", ylabel="latency [ms]", yscale="log")
    axes.legend(fontsize=8)


@figure(SIZE)
def batches(axes: Any, results: Results) -> None:
    """Share of requests computed in batches of each size, by number of clients."""
    for clients, load in results.closed.items():
        sizes = load.answers.batch_sizes
        shares = [count / sum(sizes.values()) for count in sizes.values()]
        axes.plot(list(sizes), shares, marker=".", label=f"{clients} clients")
    axes.set(xlabel="batch size", ylabel="share of requests")
    axes.legend(fontsize=8)


@figure(SIZE)
def stages(axes: Any, spent: dict[str, dict[str, float]]) -> None:
    """Stages of a request, alone and under load [ms]."""
    left = [0.0] * len(spent)
    for stage in next(iter(spent.values())):
        widths = [of[stage] for of in spent.values()]
        axes.barh(list(spent), widths, left=left, label=stage)
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.set(xlabel="ms", xscale="symlog")
    axes.legend(fontsize=8)
