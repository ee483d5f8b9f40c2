"""The table: medians of the rounds, one line for each server and protocol, and the reason where there are no figures."""

import statistics
from dataclasses import dataclass, field

HEADINGS = ["server", "protocol", "requests/s", "p50 ms", "p99 ms", "server CPU µs/request", "CPU ÷ Bascule"]


@dataclass
class Row:
    """A server's line for a protocol: figures by name, a dictionary for each round, or why there are none."""

    name: str
    protocol: str
    version: str = ""
    rounds: list = field(default_factory=list)
    reason: str = ""

    def medians(self):
        """None where anything went wrong: the rounds before that are not trusted either."""
        if self.reason or not self.rounds:
            return None
        return {name: statistics.median(figures[name] for figures in self.rounds) for name in self.rounds[0]}


def transport(row):
    """HTTP or gRPC: each is compared with Bascule over the same."""
    return row.protocol.split()[0].rstrip(",")


def line(row, bases):
    server = f"{row.name} {row.version}".strip()
    medians = row.medians()
    base = next((base.medians() for base in bases if transport(base) == transport(row)), None)
    if medians is None:
        # A bar would end the cell.
        reason = (row.reason or "there was no round").replace("|", "/")
        return [server, row.protocol, f"not measured: {reason}", "", "", "", ""]
    ratio = f"{medians['cpu'] / base['cpu']:.1f}" if base else "–"
    times = [f"{medians[name]:.2f}" for name in ("p50", "p99")]
    return [server, row.protocol, f"{medians['rate']:,.0f}", *times, f"{medians['cpu']:,.0f}", ratio]


def table(rows, bases):
    """Markdown, one line for every row; HTTP comes before gRPC."""
    ordered = sorted(rows, key=lambda row: transport(row) != "HTTP")
    lines = [HEADINGS, ["---"] * len(HEADINGS), *(line(row, bases) for row in ordered)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
