"""What the house is told: ids that hold, offsets that only grow, one person however the nick is written."""

from __future__ import annotations

from typing import Any

from bridged.connectors.irc.events import Message, Moved, Named, Redacted, Tagged
from bridged.connectors.irc.mapping import Inbound
from bridged.connectors.irc.names import Support
from bridged.connectors.irc.wire import Source
from bridged.envelope import new_envelope
from bridged.schema import read_inbound

OPS = "msgr://channels/acme/bridge/irc/irc.lab/%23Ops"
WALL = 1_764_000_000.5


def inbound() -> Inbound:
    return Inbound(workspace="acme", network="irc.lab", support=Support(), refs=[OPS])


def message(text: str = "hi", **changes: Any) -> Message:
    values: dict[str, Any] = {
        "kind": "message",
        "source": Source("Irene", "i", "h"),
        "target": "#ops",
        "channel": "#ops",
        "text": text,
        "tags": {},
        "msgid": None,
        "account": None,
        "time": None,
        "label": None,
        "is_own": False,
        "is_playback": False,
    }
    return Message(**(values | changes))


def payload(mapper: Inbound, event: Message, wall: float = WALL) -> dict[str, Any]:
    publication = mapper.message(event, wall=wall)
    assert publication is not None
    assert publication.key == publication.payload["channel"].encode()
    return publication.payload


def test_the_schema_reads_every_payload() -> None:
    mapper = inbound()
    publications = [
        mapper.message(message(), wall=WALL),
        mapper.tagged(
            Tagged(source=Source("bob"), channel="#ops", what="react", value="👍", msgid="x", account=None,
                   time=None, is_own=False), wall=WALL,
        ),
        mapper.tagged(
            Tagged(source=Source("bob"), channel="#ops", what="typing", value="done", msgid=None, account=None,
                   time=None, is_own=False), wall=WALL,
        ),
        mapper.redacted(
            Redacted(source=Source("bob"), channel="#ops", msgid="x", reason="", time=None, is_own=False),
            wall=WALL,
        ),
        *mapper.moved(Moved(channel="#ops", change="nick", names=("a",), new_name="b"), wall=WALL),
        *mapper.moved(Moved(channel="#ops", change="split", names=("a", "b"), reason="x.y z.w"), wall=WALL),
        *mapper.moved(Moved(channel="#ops", change="kick", names=("a",), by="op", reason="r"), wall=WALL),
        mapper.named(Named("#ops", ("a", "b")), wall=WALL),
        mapper.gap("#ops", WALL, WALL + 5, "daemon_down"),
    ]  # fmt: skip
    for publication in publications:
        assert publication is not None
        assert publication.is_ephemeral == (publication.action == "typing_event")
        envelope = new_envelope(
            "irc",
            publication.action,
            publication.payload,
            now=WALL,
            trace_id="t",
            metadata={"tenant": "acme"},
        )
        read = read_inbound(envelope, tenant="acme")
        assert getattr(read, "channel", OPS) == OPS


def test_a_configured_reference_is_used_as_it_is_written() -> None:
    mapper = inbound()
    assert mapper.reference("#OPS") == OPS
    assert mapper.reference("#Dev") == "msgr://channels/acme/bridge/irc/irc.lab/%23dev"


def test_references_of_other_networks_are_not_ours() -> None:
    mapper = inbound()
    mapper.set_refs(
        [OPS, "msgr://channels/acme/bridge/irc/other/%23x", "msgr://channels/acme/bridge/xmpp/a@b"]
    )
    assert mapper.channels == ["#Ops"]


def test_one_person_has_one_reference() -> None:
    one, other = inbound().person("Irene[x]"), inbound().person("irene{X}")
    assert one["ref"] == other["ref"] and one["name"] == "Irene[x]"


def test_the_servers_id_and_time_count() -> None:
    told = payload(inbound(), message(msgid="abc", time="2025-11-24T15:59:59.123Z"))
    assert (told["remote_id"], told["timestamp"]) == ("abc", "2025-11-24T15:59:59.123Z")
    assert told["cursor"] == {"stream": "#ops", "value": "1763999999123"} and told["offset"] == 1763999999123


def test_a_time_that_is_none_or_far_ahead_is_not_believed() -> None:
    for time in ("soon", "2031-01-01T00:00:00Z", "2025-11-24T15:59:59"):
        assert payload(inbound(), message(time=time))["timestamp"] == "2025-11-24T16:00:00.500Z"


def test_offsets_only_grow_and_go_on_behind_the_cursor() -> None:
    mapper = inbound()
    mapper.resume("#ops", 1_764_000_100_000)
    offsets = [payload(mapper, message(str(number)))["offset"] for number in range(3)]
    assert offsets == [1_764_000_100_001, 1_764_000_100_002, 1_764_000_100_003]


def test_without_an_id_a_line_has_the_same_one_when_history_tells_it_again() -> None:
    time = "2025-11-24T15:59:59.123Z"
    live = inbound()
    first = payload(live, message("ok", time=time))["remote_id"]
    second = payload(live, message("ok", time=time))["remote_id"]
    assert first != second and len(first) == 26
    again = inbound()
    told = [payload(again, message("ok", time=time, is_playback=True))["remote_id"] for _ in range(2)]
    assert told == [first, second]
    again.forget_playback("#ops")
    assert payload(again, message("ok", time=time, is_playback=True))["remote_id"] == first


def test_ids_differ_by_speaker_text_time_and_channel() -> None:
    ids = {
        payload(inbound(), message(**changes), wall)["remote_id"]
        for changes, wall in (
            ({}, WALL),
            ({"text": "ho"}, WALL),
            ({"source": Source("bob", "i", "h")}, WALL),
            ({"channel": "#dev", "target": "#dev"}, WALL),
            ({}, WALL + 0.001),
        )
    }
    assert len(ids) == 5


def test_private_lines_and_our_own_are_not_told() -> None:
    assert inbound().message(message(channel=None), wall=WALL) is None
    assert inbound().message(message(is_own=True), wall=WALL) is None


def test_codes_become_text_and_markup_and_html_stays_text() -> None:
    told = payload(inbound(), message("\x02<b>\x02 & \x0304red"))
    assert told["text"] == "<b> & red"
    assert told["html"] == '<b>&lt;b&gt;</b> &amp; <font color="#ff0000">red</font>'


def test_reactions_are_told_as_the_senders_whole_set() -> None:
    mapper = inbound()

    def react(what: str, emoji: str) -> list[str]:
        event = Tagged(
            source=Source("bob"), channel="#ops", what=what, value=emoji, msgid="x", account=None, time=None,
            is_own=False,
        )  # fmt: skip
        publication = mapper.tagged(event, wall=WALL)
        assert publication is not None
        emojis: list[str] = publication.payload["emojis"]
        return emojis

    assert react("react", "👍") == ["👍"]
    assert react("react", "🎉") == ["👍", "🎉"]
    assert react("react", "🎉") == ["👍", "🎉"]
    assert react("unreact", "👍") == ["🎉"]
