"""What the house says about itself: JSON lines on stderr, and numbers for Prometheus.

A log line holds the fields of an allow-list and nothing else, each escaped and cut; a value that nobody thought of
is left out and named.  A message's text, a secret or a platform's raw line has no field, so it cannot be logged by
mistake.  A number has a name in `METRICS`, labels whose values are few, and is read when somebody asks.
"""

from __future__ import annotations

import enum
import json
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import attrs
import structlog
import trio
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from structlog.typing import FilteringBoundLogger

from bridged.envelope import format_time, from_ms
from bridged.errors import BridgeError
from bridged.secret import Secret
from shards.errors import ShardsError

if TYPE_CHECKING:
    from shards.broker.statistics import BrokerStatistics, GroupStatistics

# Ours.
FIELDS = frozenset(
    {
        "account", "action", "address", "at", "attempt", "client", "code", "connector", "conversation", "count",
        "detail", "dropped", "endpoint", "error", "event", "group", "hint", "instance", "latency_ms", "level",
        "member", "name", "offset", "operation", "path", "pid", "position", "principal", "reason", "seconds", "service",
        "shard", "state", "tenant", "topic", "trace_id", "traceback", "version",
    }
)  # fmt: skip
"""What a log line may hold."""
TEXT_CHARACTERS_MAX = 512
ITEMS_MAX = 50
LABEL_SETS_MAX = 1000
"""Of one metric; what comes later is counted together under `other`."""
OTHER = "other"
CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"
LEVELS: Mapping[str, int] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
LOOP_PROBE_S = 1.0

Kind = Literal["counter", "gauge", "histogram"]


@attrs.frozen
class MetricName:
    """A number that is exported; the documentation lists them from `METRICS`."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: tuple[MetricName, ...] = (
    MetricName("bridged_info", "gauge", "Always 1; the version is a label.", ("shard", "version")),
    MetricName("bridged_log_lines_total", "counter", "Log lines written, by level.", ("level",)),
    MetricName(
        "bridged_loop_lag_seconds",
        "histogram",
        "How much too late the event loop woke a sleeper.",
        (),
        (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5),
    ),
    MetricName("bridged_links", "gauge", "Links to the broker that are open."),
    MetricName("bridged_links_half_open", "gauge", "Links whose handshake is not done."),
    MetricName(
        "bridged_links_ended_total",
        "counter",
        "Links that the broker ended: refused by their key, hostile, slow, or by a fault of ours.",
        ("reason",),
    ),
    MetricName("bridged_published_total", "counter", "Records published and on disk."),
    MetricName("bridged_publish_duplicates_total", "counter", "Publishes that had been received before."),
    MetricName(
        "bridged_publish_overloaded_total", "counter", "Publishes refused since too much was waiting."
    ),
    MetricName("bridged_ephemeral_total", "counter", "Passing records, which are never logged."),
    MetricName("bridged_ephemeral_shed_total", "counter", "Passing records dropped for a slow reader."),
    MetricName("bridged_pending_bytes", "gauge", "Published and not yet on disk."),
    MetricName("bridged_requests_total", "counter", "Requests between members, by outcome.", ("outcome",)),
    MetricName("bridged_requests_open", "gauge", "Requests that wait for their answer."),
    MetricName("bridged_group_lag", "gauge", "Records that a group has not finished.", ("tenant", "group")),
    MetricName(
        "bridged_group_in_flight", "gauge", "Records handed to a group's members.", ("tenant", "group")
    ),
    MetricName("bridged_dead_letters_total", "counter", "Dead letters of a group.", ("tenant", "group")),
    MetricName("bridged_member_up", "gauge", "1 while a member runs, else 0.", ("member",)),
    MetricName(
        "bridged_member_crashes", "gauge", "Falls of a member that still count against it.", ("member",)
    ),
)


# Logs.


@attrs.define
class _Logs:
    wall: Callable[[], float] | None = None
    level: int = LEVELS["info"]
    written: dict[str, int] = attrs.field(factory=dict)


_logs = _Logs()
"""stderr is one a process, so this is too."""


class _Stderr:
    """What structlog hands finished lines to."""

    def line(self, text: str) -> None:
        try:
            sys.stderr.write(text + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # nobody reads any more; that is no reason to stop the shard
            return

    debug = info = warning = error = line


def configure(*, wall: Callable[[], float], level: str = "info") -> None:
    """Set the clock and the least level of this process's log lines.

    Raises:
        ValueError: No such level.
    """
    if level not in LEVELS:
        raise ValueError(f"a log level is one of {', '.join(LEVELS)}")
    _logs.wall = wall
    _logs.level = LEVELS[level]


def get_logger(member: str) -> FilteringBoundLogger:
    """A logger whose lines name their member: `log.info("what", field=value)`."""
    logger: FilteringBoundLogger = structlog.wrap_logger(
        _Stderr(),
        processors=[_stamp, _only_known, _render],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS["debug"]),
        member=member,
    )
    return logger


def traceback_of(fault: BaseException) -> list[str]:
    """Where an exception came from, without one value: type names, files, lines, functions.

    Of our own errors the sentence stands too; they quote nothing.  Of others it may hold anything.
    """
    return list(_told(fault, 0))[:ITEMS_MAX]


def _told(fault: BaseException, depth: int) -> Iterator[str]:
    indent = "  " * depth
    yield (
        indent + type(fault).__name__ + (f": {fault}" if isinstance(fault, BridgeError | ShardsError) else "")
    )
    for frame in traceback.extract_tb(fault.__traceback__)[-12:]:
        place = "/".join(PurePath(frame.filename).parts[-3:])
        yield f"{indent}  {place}:{frame.lineno} {frame.name}"
    if depth < 4:
        if isinstance(fault, BaseExceptionGroup):
            for inner in fault.exceptions[:5]:
                yield from _told(inner, depth + 1)
        if fault.__cause__ is not None:
            yield from _told(fault.__cause__, depth + 1)


def clean(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the allow-list, fit for a line; what was left out is named in `dropped`."""
    kept = {key: _value(value) for key, value in fields.items() if key in FIELDS}
    dropped = sorted(str(key)[:40] for key in fields if key not in FIELDS)
    return kept | {"dropped": dropped[:ITEMS_MAX]} if dropped else kept


def _value(value: object, depth: int = 0) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value if len(value) <= TEXT_CHARACTERS_MAX else value[: TEXT_CHARACTERS_MAX - 1] + "…"
    if isinstance(value, enum.Enum):
        return _value(value.value)
    if isinstance(value, PurePath):
        return _value(str(value))
    if isinstance(value, BridgeError | ShardsError):
        return _value(f"{type(value).__name__}: {value}")
    if isinstance(value, list | tuple) and depth == 0:
        return [_value(item, 1) for item in value[:ITEMS_MAX]]
    if isinstance(value, Secret):
        return repr(value)
    return f"<{type(value).__name__}>"  # never its repr: that may hold anything


def _stamp(_: object, level: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if LEVELS.get(level, LEVELS["error"]) < _logs.level:
        raise structlog.DropEvent
    _logs.written[level] = _logs.written.get(level, 0) + 1
    head: dict[str, Any] = {"level": level}
    if _logs.wall is not None:
        head = {"at": format_time(from_ms(int(_logs.wall() * 1000))), **head}
    return head | dict(fields)


def _only_known(_: object, __: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return clean(fields)


def _render(_: object, __: str, fields: MutableMapping[str, Any]) -> str:
    # ASCII alone: no control character, no direction mark reaches a terminal or starts a line of its own.
    return json.dumps(fields, ensure_ascii=True, separators=(",", ":"))


# Numbers.


@attrs.frozen
class Sample:
    """A number as it stands now; counters count from the start of the process."""

    name: str
    value: float
    labels: tuple[str, ...] = ()


Source = Callable[[], Iterable[Sample]]


class Metrics:
    """The numbers of one process.  `render` is what /metrics answers."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._names = {metric.name: metric for metric in METRICS}
        self._values: dict[str, dict[tuple[str, ...], float]] = {metric.name: {} for metric in METRICS}
        self._histograms = {
            metric.name: Histogram(
                metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self._registry
            )
            for metric in METRICS
            if metric.kind == "histogram"
        }
        self._children: dict[tuple[str, tuple[str, ...]], Histogram] = {}
        self._sources: list[Source] = [_log_samples]
        self._registry.register(_Collector(self._families))
        ProcessCollector(registry=self._registry)

    def add_source(self, source: Source) -> None:
        """Ask `source` for its samples whenever the numbers are read."""
        self._sources.append(source)

    def put(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge, or a counter that somebody else counts."""
        values = self._values[name]
        values[self._bounded(name, labels, values)] = value

    def count(self, name: str, *labels: str, n: float = 1) -> None:
        """Add to a counter."""
        values = self._values[name]
        key = self._bounded(name, labels, values)
        values[key] = values.get(key, 0) + n

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add a value to a histogram."""
        key = name, labels
        child = self._children.get(key)
        if child is None:
            histogram = self._histograms[name]
            child = histogram.labels(*labels) if labels else histogram
            if len(self._children) < LABEL_SETS_MAX:
                self._children[key] = child
        child.observe(value)

    def render(self) -> bytes:
        """All numbers in Prometheus's text format."""
        for source in self._sources:
            for sample in source():
                self.put(sample.name, sample.value, *sample.labels)
        return generate_latest(self._registry)

    def _bounded(
        self, name: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
    ) -> tuple[str, ...]:
        wanted = len(self._names[name].labels)
        if len(labels) != wanted:
            raise ValueError(f"{name} has {wanted} labels")
        if labels in values or len(values) < LABEL_SETS_MAX:
            return labels
        return (OTHER,) * wanted

    def _families(self) -> Iterator[Metric]:
        for metric in METRICS:
            if metric.kind == "histogram":
                continue
            family = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            made = family(metric.name, metric.help, labels=metric.labels)
            for labels, value in self._values[metric.name].items():
                made.add_metric(labels, value)
            yield made


class _Collector:
    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self.collect = families


def broker_samples(statistics: BrokerStatistics) -> list[Sample]:
    """A broker's numbers."""
    requests = statistics.requests
    return [
        Sample("bridged_links", statistics.links),
        Sample("bridged_links_half_open", statistics.half_open),
        Sample("bridged_links_ended_total", statistics.refused, ("refused",)),
        Sample("bridged_links_ended_total", statistics.hostile, ("hostile",)),
        Sample("bridged_links_ended_total", statistics.slow, ("slow",)),
        Sample("bridged_links_ended_total", statistics.faults, ("fault",)),
        Sample("bridged_published_total", statistics.published),
        Sample("bridged_publish_duplicates_total", statistics.duplicates),
        Sample("bridged_publish_overloaded_total", statistics.overloaded),
        Sample("bridged_ephemeral_total", statistics.ephemeral),
        Sample("bridged_ephemeral_shed_total", statistics.shed),
        Sample("bridged_pending_bytes", statistics.pending_octets),
        Sample("bridged_requests_total", requests.answered, ("answered",)),
        Sample("bridged_requests_total", requests.timed_out, ("timed_out",)),
        Sample("bridged_requests_total", requests.repeated, ("repeated",)),
        Sample("bridged_requests_total", requests.late, ("late",)),
        Sample("bridged_requests_open", requests.open),
    ]


def group_samples(tenant: str, groups: Sequence[GroupStatistics]) -> list[Sample]:
    """The numbers of a tenant's consumer groups."""
    samples = []
    for group in groups:
        labels = tenant, group.name
        samples += [
            Sample("bridged_group_lag", group.lag, labels),
            Sample("bridged_group_in_flight", group.in_flight, labels),
            Sample("bridged_dead_letters_total", group.dead, labels),
        ]
    return samples


def member_samples(members: Iterable[tuple[str, bool, int]]) -> list[Sample]:
    """(name, does it run, crashes) of each member."""
    samples = []
    for name, is_up, crashes in members:
        samples += [
            Sample("bridged_member_up", int(is_up), (name,)),
            Sample("bridged_member_crashes", crashes, (name,)),
        ]
    return samples


def _log_samples() -> list[Sample]:
    return [Sample("bridged_log_lines_total", count, (level,)) for level, count in _logs.written.items()]


async def probe_loop(metrics: Metrics) -> NoReturn:
    """Measure how punctual the event loop is, once a second."""
    while True:
        due = trio.current_time() + LOOP_PROBE_S
        await trio.sleep_until(due)
        metrics.observe("bridged_loop_lag_seconds", max(0.0, trio.current_time() - due))
