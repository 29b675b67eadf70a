"""Log lines hold what may be known and nothing else; numbers have names, few labels, and a reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from bridged import telemetry
from bridged.connectors import ConnectorState
from bridged.errors import ConnectorError
from bridged.secret import Secret
from bridged.telemetry import FIELDS, METRICS, Metrics, Sample, clean, get_logger, traceback_of


@pytest.fixture(autouse=True)
def restored() -> Any:
    yield
    telemetry.configure(wall=lambda: 0.0)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_a_line_is_json_with_time_level_and_member(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure(wall=lambda: 1764000000.5)
    get_logger("facade").info("stored", tenant="acme", count=3, state=ConnectorState.RUNNING, path=Path("/x"))
    assert lines(capsys) == [
        {
            "at": "2025-11-24T16:00:00.500Z",
            "level": "info",
            "member": "facade",
            "event": "stored",
            "tenant": "acme",
            "count": 3,
            "state": "running",
            "path": "/x",
        }
    ]


def test_levels_below_the_least_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    log = get_logger("x")
    log.debug("no")
    telemetry.configure(wall=lambda: 0.0, level="error")
    log.warning("no")
    log.error("yes")
    assert [line["event"] for line in lines(capsys)] == ["yes"]
    with pytest.raises(ValueError, match="debug, info"):
        telemetry.configure(wall=lambda: 0.0, level="loud")


def test_what_is_not_on_the_list_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger("irc").warning(
        "odd", text="my password is hunter2", raw=b"PASS hunter2", detail=Secret(b"hunter2")
    )
    (line,) = lines(capsys)
    assert line["dropped"] == ["raw", "text"]
    assert "hunter2" not in json.dumps(line)
    assert line["detail"] == "Secret(…)"


def test_a_line_stays_one_short_line_of_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    get_logger("x").info("a\nb\x1b[31m\u202e\u2028", detail="y" * 10_000, traceback=["z"] * 500)
    raw = capsys.readouterr().err
    assert raw.isascii() and raw.count("\n") == 1 and "\x1b" not in raw
    line = json.loads(raw)
    assert len(line["detail"]) == telemetry.TEXT_CHARACTERS_MAX
    assert len(line["traceback"]) == telemetry.ITEMS_MAX


def test_a_closed_stderr_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def write(self, text: str) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    get_logger("x").error("nobody hears")


def test_an_object_is_shown_by_its_type_alone() -> None:
    class Holder:
        def __repr__(self) -> str:
            return "hunter2"

    cleaned = clean(
        {"detail": Holder(), "error": ConnectorError("lost"), "reason": ValueError("hunter2"), "code": b"x"}
    )
    assert cleaned == {
        "detail": "<Holder>",
        "error": "ConnectorError: lost",
        "reason": "<ValueError>",
        "code": "<bytes>",
    }
    assert clean({"detail": [["deep"]]}) == {"detail": ["<list>"]}


def test_a_traceback_names_places_and_no_values() -> None:
    def deep(secret: str) -> None:
        raise ValueError(secret)

    try:
        try:
            deep("hunter2")
        except ValueError as exc:
            raise ExceptionGroup("several", [ConnectorError("the server closed"), exc]) from exc
    except ExceptionGroup as group:
        told = traceback_of(group)
    text = "\n".join(told)
    assert told[0] == "ExceptionGroup"
    assert "ConnectorError: the server closed" in text
    assert "test_telemetry.py" in text and " deep" in text
    assert "hunter2" not in text


@given(
    st.dictionaries(
        st.sampled_from(sorted(FIELDS)) | st.text(max_size=10), st.text() | st.integers() | st.binary()
    )
)
def test_any_fields_make_a_line_of_known_keys(fields: dict[str, Any]) -> None:
    cleaned = clean(fields)
    assert set(cleaned) <= FIELDS
    json.dumps(cleaned)


# Numbers.


def read(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_every_name_is_well_formed_and_said_once() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert metric.name.startswith("bridged_") and metric.help.endswith(".")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")


def test_numbers_are_read_when_somebody_asks() -> None:
    metrics = Metrics()
    metrics.put("bridged_links", 3)
    metrics.count("bridged_links_ended_total", "slow")
    metrics.count("bridged_links_ended_total", "slow", n=2)
    metrics.observe("bridged_loop_lag_seconds", 0.02)
    lag = 5.0
    metrics.add_source(lambda: [Sample("bridged_group_lag", lag, ("acme", "facade"))])
    lag = 7.0
    numbers = read(metrics)
    assert numbers["bridged_links", ()] == 3
    assert numbers["bridged_links_ended_total", (("reason", "slow"),)] == 3
    assert numbers["bridged_group_lag", (("group", "facade"), ("tenant", "acme"))] == 7
    assert numbers["bridged_loop_lag_seconds_bucket", (("le", "0.05"),)] == 1
    assert numbers["process_resident_memory_bytes", ()] > 0


def test_labels_cannot_grow_without_bound() -> None:
    metrics = Metrics()
    for number in range(telemetry.LABEL_SETS_MAX + 500):
        metrics.count("bridged_links_ended_total", f"reason-{number}")
    numbers = [key for key in read(metrics) if key[0] == "bridged_links_ended_total"]
    assert len(numbers) == telemetry.LABEL_SETS_MAX + 1
    assert read(metrics)["bridged_links_ended_total", (("reason", "other"),)] == 500


def test_a_wrong_name_or_number_of_labels_is_a_bug_and_says_so() -> None:
    metrics = Metrics()
    with pytest.raises(KeyError):
        metrics.put("bridged_nothing", 1)
    with pytest.raises(ValueError, match="2 labels"):
        metrics.put("bridged_group_lag", 1, "acme")


def test_what_the_broker_tells_becomes_numbers_that_exist() -> None:
    statistics = pytest.importorskip("shards.broker.statistics")
    requests = pytest.importorskip("shards.broker.requests").RequestStatistics
    broker = statistics.BrokerStatistics(
        links=1, half_open=2, refused=3, hostile=4, slow=5, faults=6, published=7, duplicates=8, overloaded=9,
        ephemeral=10, shed=11, pending_octets=12,
        requests=requests(asked=1, answered=2, late=3, timed_out=4, repeated=5, open=6, kept=7),
    )  # fmt: skip
    group = statistics.GroupStatistics(
        name="facade", topics=None, position=1, head=2, lag=1, in_flight=1, dead=0, members=1, late=0
    )
    metrics = Metrics()
    metrics.add_source(lambda: telemetry.broker_samples(broker))
    metrics.add_source(lambda: telemetry.group_samples("acme", [group]))
    metrics.add_source(lambda: telemetry.member_samples([("irc/libera", True, 2)]))
    numbers = read(metrics)
    assert numbers["bridged_published_total", ()] == 7
    assert numbers["bridged_requests_total", (("outcome", "timed_out"),)] == 4
    assert numbers["bridged_member_up", (("member", "irc/libera"),)] == 1


async def test_a_late_loop_is_measured(autojump_clock: trio.testing.MockClock) -> None:
    metrics = Metrics()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(telemetry.probe_loop, metrics)
        await trio.sleep(3.5)
        nursery.cancel_scope.cancel()
    assert read(metrics)["bridged_loop_lag_seconds_count", ()] == 3
