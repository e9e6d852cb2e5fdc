"""What the gate counts, as Prometheus text."""

from collections import Counter

# Answers of the gate itself, by their code; they exist from the start.
CODES = (
    "bad_request",
    "malformed_body",
    "unsupported_media_type",
    "too_large",
    "slow_request",
    "overloaded",
    "deadline_expired",
    "timeout",
    "unavailable",
    "server_error",
    "not_found",
    "method_not_allowed",
    "not_ready",
)


class Counters:
    """Answers by status class, and the gate's own refusals by code."""

    def __init__(self) -> None:
        self.answers: Counter[int] = Counter({2: 0, 4: 0, 5: 0})
        self.refusals: Counter[str] = Counter(dict.fromkeys(CODES, 0))

    def text(self) -> bytes:
        """Return them in Prometheus' text format."""
        lines = [
            "# HELP vla_gate_answers_total Answers that left the gate.",
            "# TYPE vla_gate_answers_total counter",
        ]
        lines += [f'vla_gate_answers_total{{status="{k}xx"}} {n}' for k, n in sorted(self.answers.items())]
        lines += [
            "# HELP vla_gate_refusals_total Requests that the gate answered itself.",
            "# TYPE vla_gate_refusals_total counter",
        ]
        lines += [f'vla_gate_refusals_total{{code="{k}"}} {n}' for k, n in sorted(self.refusals.items())]
        return "\n".join([*lines, ""]).encode()
