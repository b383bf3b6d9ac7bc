"""The table of a run: one row a case, what was reached beside what is to be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import measure
from benchmarks.on_enginery import FEW, MANY

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Run:
    """The numbers of one run. `peers` has those that were measured, by name."""

    enginery: measure.Numbers
    tls: measure.Numbers
    plaintext: measure.Numbers
    peers: dict[str, measure.Numbers]


@dataclass(frozen=True)
class Row:
    """One case. `bare` names what stands beside it in the baseline, `limit` gives the goal: at most that, or at
    least that if more is better.
    """

    title: str
    unit: str
    key: str
    bare: str = ""
    limit: Callable[[Run], float] | None = None
    more_is_better: bool = False

    def is_reached(self, run: Run) -> bool:
        """Return whether the goal is reached; True if there is none."""
        if self.limit is None:
            return True
        value, limit = run.enginery[self.key], self.limit(run)
        return value >= limit if self.more_is_better else value <= limit


def _direct_limit(run: Run) -> float:
    """At most 5 x a bare TLS stream ping-pong."""
    return 5 * run.tls["stream p50"]


def _relayed_limit(run: Run) -> float:
    """At most 8 x a bare TLS stream ping-pong."""
    return 8 * run.tls["stream p50"]


def _share(bare: str, share: float) -> Callable[[Run], float]:
    """At least a share of what a bare TLS stream of raw bytes moves."""
    return lambda run: share * run.tls[bare]


_DIRECT_SHARE, _RELAYED_SHARE = 0.77, 0.37
"""2.5 and 1.2 GB/s where a bare stream does 3.25."""

ROWS = (
    Row("round trip, `apply`, p50", "us", "apply p50", "stream p50", _direct_limit),
    Row("round trip, `apply`, p99", "us", "apply p99", "stream p99"),
    Row("the same through the controller, p50", "us", "relayed p50", "stream p50", _relayed_limit),
    Row("the same through the controller, p99", "us", "relayed p99", "stream p99"),
    Row("round trip, `execute`, p50", "us", "execute p50", "unary p50"),
    Row("round trip, `execute`, p99", "us", "execute p99", "unary p99"),
    Row(f"calls, {measure.IN_FLIGHT} in flight", "1/s", "in flight", "in flight"),
    Row("no-op tasks over 4 engines", "1/s", "tasks", "", lambda _: 25_000, more_is_better=True),
    Row("the same, async client", "1/s", "tasks async", "", lambda _: 40_000, more_is_better=True),
    Row("items of a map that do nothing, by default", "1/s", "map"),
    *(
        Row(
            f"{verb} {size} MB",
            "MB/s",
            f"{verb} {size} MB",
            f"{verb} {size} MB",
            _share(f"{verb} {size} MB", _DIRECT_SHARE) if size == max(measure.SIZES) else None,
            more_is_better=True,
        )
        for verb in ("push", "pull")
        for size in measure.SIZES
    ),
    *(
        Row(
            f"{name} through the controller",
            "MB/s",
            f"relayed {name}",
            name,
            _share(name, _RELAYED_SHARE),
            more_is_better=True,
        )
        for name in (f"{verb} {max(measure.SIZES)} MB" for verb in ("push", "pull"))
    ),
    *(
        Row(
            f"round trip beside a {verb} of 1 GB, p99",
            "us",
            f"beside {verb} p99",
            f"beside {verb} p99",
            lambda _: 10_000,
        )
        for verb in ("push", "pull")
    ),
    Row("4 engines ready", "s", "4 ready", "ready"),
    Row("16 engines ready", "s", "16 ready", "", lambda _: 1.5),
    Row("fan-out to 16, `apply`, p50", "us", "fan-out p50", "", lambda _: 3_000),
    Row("memory, controller, idle", "MB", "idle controller", "idle server", lambda _: 80),
    Row("memory, host of 4 engines, idle", "MB", "idle host"),
    Row("memory, kernel, idle", "MB", "idle kernel"),
    *(
        row
        for role in ("controller", "host", "kernel", "client")
        for row in (
            Row(f"memory, {role}, after {FEW:,} calls", "MB", f"{role} after {FEW}"),
            Row(f"memory, {role}, after {MANY:,} calls", "MB", f"{role} after {MANY}"),
            Row(f"memory, {role}, growth between", "MB", f"{role} growth", "", lambda _: 5),
        )
    ),
)


def render(run: Run) -> str:
    """Return the table as Markdown."""
    head = [
        "case",
        "unit",
        "Enginery",
        "bare gRPC, TLS",
        "bare gRPC, plaintext",
        *run.peers,
        "goal",
        "reached",
    ]
    lines = [head, ["---", "---", *(["---:"] * (len(head) - 3)), "---"]]
    lines += [_line(row, run) for row in ROWS]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def missed(run: Run) -> list[str]:
    """Return the titles of rows whose goal was missed."""
    return [row.title for row in ROWS if not row.is_reached(run)]


def _line(row: Row, run: Run) -> list[str]:
    limit = row.limit(run) if row.limit else None
    return [
        row.title,
        row.unit,
        _number(run.enginery[row.key]),
        _number(run.tls.get(row.bare)),
        _number(run.plaintext.get(row.bare)),
        *(_number(numbers.get(row.key)) for numbers in run.peers.values()),
        "" if limit is None else f"{'>=' if row.more_is_better else '<='} {_number(limit)}",
        "" if limit is None else ("yes" if row.is_reached(run) else "**no**"),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
