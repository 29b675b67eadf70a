"""Play the client sides of a recorded conversation to the fake, and compare what both servers said.

Compared are trees, connection by connection, in segments between two client writes of that connection, without
what no two runs share (ids that the server makes, stamps, nonces).  Where a client repeats such an id (an archive
page, a resume), the fake's own is put in its place.  Logins by SCRAM are played as PLAIN, since nonces differ.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import trio
import trio.testing

from bridged.peers.stamp import from_utc
from bridged.peers.xmpp import XmppServer, ns
from bridged.peers.xmpp.xml import Closed, Element, Opened, StreamParser, XmlRefused

Tree = tuple[Any, ...]
HEAD = f"<stream:stream xmlns='{ns.CLIENT}' xmlns:stream='{ns.STREAM}'>"


@attrs.frozen
class Record:
    at: float
    conn: str
    direction: str
    xml: str
    note: str


def load(path: Path) -> list[Record]:
    records = []
    for text in path.read_text("utf-8").split("\n"):
        if text:
            r = json.loads(text)
            records.append(Record(r.get("t", 0.0), r["conn"], r["dir"], r["xml"], r.get("note", "")))
    return records


def began_at(records: list[Record]) -> float:
    """Seconds since 1970 at the transcript's zero, as near as its stamps tell."""
    found = []
    for record in records:
        if record.direction == "S":
            for stamp in re.findall(r"stamp='([^']+)'", record.xml):
                found.append(from_utc(stamp) - record.at)
    return max(found, default=0.0)


def parse(xml: str) -> Element | str:
    """One recorded server item; headers and ends are words."""
    if xml.startswith("<?xml") or xml.startswith("<stream:stream"):
        return "header"
    if xml.startswith("</stream"):
        return "end"
    try:
        found = StreamParser(1 << 24).feed((HEAD + xml).encode())
    except XmlRefused:
        return f"unparsable {xml[:60]}"
    return next(e for e in found if isinstance(e, Element))


@attrs.define
class Segment:
    """What one connection heard between two of its own writes."""

    sent: str
    note: str
    heard: list[Tree] = attrs.field(factory=list)
    raw: list[Element | str] = attrs.field(factory=list)


STANZAS = ("<message", "<presence", "<iq")
WRITE_S = 0.002
"""Client items closer than this were one step."""
IDS = ("stanza-id", "result", "enabled", "resumed", "occupant-id")
MADE = re.compile(r"[A-Za-z0-9_-]{24}")
"""An id as this server and Prosody make them."""
SKIPPED = frozenset({"challenge", "features", "r"})
"""Nonces, what is offered in which order, and how often the server asks for an acknowledgement."""


def tree(element: Element | str) -> Tree | None:
    """An element as it is compared; None where it is not."""
    if isinstance(element, str):
        return None if element == "header" else (element,)
    if element.name in SKIPPED:
        return None
    return _tree(element)


def _tree(e: Element) -> Tree:
    given = dict(e.attributes)
    given.pop("xml:lang", None)
    if e.name in IDS and "id" in given:
        given["id"] = "…"
    if e.name in ("enabled", "resumed"):
        given["max"] = given["previd"] = "…"
    if e.name == "delay":
        given["stamp"] = "…"
    if e.name == "iq" and e.get("type") in ("set", "get") and e.get("id") != "disco":
        given["id"] = "…"
    for key in ("id", "timestamp"):
        if MADE.fullmatch(given.get(key, "")) or (key == "timestamp" and key in given):
            given[key] = "…"
    if e.is_a(ns.ROSTER, "query"):
        given.pop("ver", None)
    text = e.text
    if e.space == ns.RSM and e.name in ("first", "last"):
        text = "…"
    disconnected = e.name == "status" and text.startswith("Disconnected: ")
    if e.is_a(ns.SASL, "success") or e.name == "text" or disconnected:
        text = "…"
    if e.space == ns.BIND and e.name == "jid" and not e.text.endswith(("/one", "/two", "/three")):
        text = "…"
    if e.space == ns.INFO and e.name == "query":
        return ("query", ns.INFO)  # which features are named is each server's own affair
    children = sorted((_tree(c) for c in e.elements()), key=repr)
    return (e.name, e.space, tuple(sorted(given.items())), text, tuple(children))


def segments(records: list[Record]) -> dict[str, list[Segment]]:
    """The recorded server items of each connection."""
    found: dict[str, list[Segment]] = {}
    note, last = "", ("", "", 0.0)
    for record in records:
        if record.direction == "-":
            last = ("", "", 0.0)
            if record.conn == "-":
                note = record.note
            elif record.note == "TCP connected":
                found.setdefault(record.conn, []).append(Segment("connect", note))
            continue
        own = found.setdefault(record.conn, [Segment("connect", note)])
        if record.direction == "C":
            if not is_answer(record.xml):
                if (record.conn, "C") == last[:2] and record.at - last[2] < WRITE_S:
                    own[-1].sent += record.xml
                else:
                    own.append(Segment(record.xml, note))
                last = (record.conn, "C", record.at)
            continue
        last = ("", "", 0.0)
        element = parse(record.xml)
        own[-1].raw.append(element)
        if (one := tree(element)) is not None:
            own[-1].heard.append(one)
    return found


def is_answer(xml: str) -> bool:
    """What slixmpp says by itself, whenever the server asks: no step of the scenario."""
    return xml.startswith(("<a ", "<response")) or ('id="disco"' in xml and 'type="result"' in xml)


@attrs.define
class Client:
    """One played connection."""

    stream: trio.abc.Stream
    parser: StreamParser = attrs.field(factory=lambda: StreamParser(1 << 24))
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    sm: str = ""
    """The session under XEP-0198, by the fake's id."""
    reading: trio.Event = attrs.field(factory=trio.Event)


def reading(client: Client) -> Client:
    client.reading.set()
    return client


class Player:
    """Plays the client side and collects what the fake answers."""

    def __init__(self, srv: XmppServer, records: list[Record], context: ssl.SSLContext) -> None:
        self._srv = srv
        self._records = records
        self._context = context
        self._recorded = segments(records)
        self._clients: dict[str, Client] = {}
        self.found: dict[str, list[Segment]] = {}
        self._ids: dict[str, str] = {}
        self._own_counts: dict[str, int] = {}
        self._note = ""
        self._last = ("", "", 0.0)

    async def play(self, steps: Mapping[str, Callable[[], None]]) -> dict[str, list[Segment]]:
        """Play everything; `steps` are deeds of the lab at a note that begins so."""
        started = trio.current_time() - self._records[0].at
        async with trio.open_nursery() as nursery:
            for number, record in enumerate(self._records):
                if record.direction == "S":
                    self._last = ("", "", 0.0)
                    continue
                await trio.sleep_until(started + record.at)
                await trio.testing.wait_all_tasks_blocked()
                self._learn()
                if record.direction == "-":
                    self._last = ("", "", 0.0)
                    await self._noted(number, record, nursery, steps)
                else:
                    await self._say(number, record)
            await trio.sleep(2)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        return self.found

    async def _noted(
        self, number: int, record: Record, nursery: trio.Nursery, steps: Mapping[str, Callable[[], None]]
    ) -> None:
        conn = record.conn
        if conn == "-":
            self._note = record.note
            for begin, deed in steps.items():
                if record.note.startswith(begin):
                    deed()
        elif record.note == "TCP connected":
            rest = [r for r in self._records[number + 1 :] if r.conn == conn]
            direct = bool(rest) and rest[0].note.startswith("TLS handshake")
            stream = self._srv.connect_memory(direct_tls=direct)
            self.found.setdefault(conn, []).append(Segment("connect", self._note))
            self._clients[conn] = reading(Client(stream))
            if not direct:
                nursery.start_soon(self._listen, conn, self._clients[conn])
        elif record.note.startswith("TLS handshake"):
            old = self._clients.get(conn)
            if old is None:  # a transcript that begins here
                self.found.setdefault(conn, []).append(Segment("connect", self._note))
                old = Client(self._srv.connect_memory(direct_tls=True))
            old.scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            stream = trio.SSLStream(old.stream, self._context, server_hostname="localhost")
            await stream.do_handshake()
            self._clients[conn] = reading(Client(stream))
            nursery.start_soon(self._listen, conn, self._clients[conn])
        elif record.note == "TCP closed" or "aborted" in record.note:
            client = self._clients.pop(conn, None)
            if client is not None:
                client.scope.cancel()
                await trio.aclose_forcefully(client.stream)

    async def _say(self, number: int, record: Record) -> None:
        conn, xml = record.conn, record.xml
        client = self._clients.get(conn)
        if client is None:
            self.found.setdefault(conn, []).append(Segment(xml, self._note))
            return
        if not is_answer(xml):
            if (conn, "C") == self._last[:2] and record.at - self._last[2] < WRITE_S:
                self.found[conn][-1].sent += xml
            else:
                self.found[conn].append(Segment(xml, self._note))
            self._last = (conn, "C", record.at)
        raw = conn.startswith("raw")
        if xml.startswith("<auth") and "SCRAM" in xml and not raw:
            xml = self._plain(number, record)
        elif xml.startswith("<response") and not raw:
            return
        elif (counted := re.match(r"<(a|resume)\b.* h=\"(\d+)\"", xml)) and not raw:
            xml = xml.replace(f'h="{counted[2]}"', f'h="{self._count(number, record, int(counted[2]))}"')
        for recorded, own in self._ids.items():
            xml = xml.replace(recorded, own)
        if "stream:stream" in xml and not xml.startswith("</"):
            client.parser = StreamParser(1 << 24)
        try:
            await client.stream.send_all(xml.encode("utf-8", "surrogatepass"))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.found[conn][-1].heard.append(("not sent",))
        await trio.testing.wait_all_tasks_blocked()

    def _count(self, number: int, record: Record, h: int) -> int:
        """What the client says it has: as far off its own count as the recorded one was."""
        previous = re.search(r'previd="([^"]+)"', record.xml)
        sid = previous[1] if previous else self._sm_at(number, record.conn)
        recorded = 0
        current: dict[str, str] = {}
        for r in self._records[:number]:
            if r.direction == "S":
                if (found := re.match(r"<enabled[^>]* id='([^']+)'", r.xml)) or (
                    found := re.match(r"<resumed[^>]* previd='([^']+)'", r.xml)
                ):
                    current[r.conn] = found[1]
                elif r.xml.startswith(STANZAS) and current.get(r.conn) == sid:
                    recorded += 1
            elif r.note == "TCP connected":
                current.pop(r.conn, None)
        return h - recorded + self._own_counts.get(self._ids.get(sid, sid), 0)

    def _sm_at(self, number: int, conn: str) -> str:
        for r in reversed(self._records[:number]):
            if r.conn == conn and r.direction == "S":
                found = re.match(r"<enabled[^>]* id='([^']+)'|<resumed[^>]* previd='([^']+)'", r.xml)
                if found:
                    return found[1] or found[2]
        return ""

    def pause(self, conn: str) -> None:
        """The client stops to read until its connection ends."""
        self._clients[conn].reading = trio.Event()

    def _plain(self, number: int, record: Record) -> str:
        """The login as PLAIN, good or bad as the recorded one was."""
        good = False
        for later in self._records[number + 1 :]:
            if later.conn == record.conn and later.direction == "S" and "challenge" not in later.xml:
                good = later.xml.startswith("<success")
                break
        text = base64.b64decode(re.sub("<[^>]*>", "", record.xml)).decode("utf-8", "replace")
        name = dict(part.split("=", 1) for part in text.split(",") if "=" in part).get("n", "")
        secret = f"pw-{name}" if good else "wrong"
        data = base64.b64encode(f"\0{name}\0{secret}".encode()).decode()
        return f"<auth xmlns='{ns.SASL}' mechanism='PLAIN'>{data}</auth>"

    async def _listen(self, conn: str, client: Client) -> None:
        with client.scope:
            while True:
                await client.reading.wait()
                try:
                    data = await client.stream.receive_some(65_536)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return
                if not data:
                    return
                for event in client.parser.feed(bytes(data)):
                    item: Element | str = "header" if isinstance(event, Opened) else "end"
                    if isinstance(event, Element):
                        item = event
                    elif isinstance(event, Closed):
                        item = "end"
                    own = self.found[conn][-1]
                    own.raw.append(item)
                    if (one := tree(item)) is not None:
                        own.heard.append(one)
                    if isinstance(item, Element):
                        self._counted(client, item)

    def _counted(self, client: Client, item: Element) -> None:
        if item.is_a(ns.SM, "enabled"):
            client.sm = item.get("id") or ""
        elif item.is_a(ns.SM, "resumed"):
            client.sm = item.get("previd") or ""
        elif item.space == ns.CLIENT and client.sm:
            self._own_counts[client.sm] = self._own_counts.get(client.sm, 0) + 1

    def _learn(self) -> None:
        """Pair the ids that both servers made, by their places."""
        for conn, own in self.found.items():
            recorded = self._recorded.get(conn, [])
            for a, b in zip(recorded, own, strict=False):
                for x, y in zip(_made(a.raw), _made(b.raw), strict=False):
                    self._ids.setdefault(x, y)


def _made(items: list[Element | str]) -> list[str]:
    """The ids in some server items that a client may repeat, in order."""
    out: list[str] = []

    def walk(e: Element) -> None:
        if e.name in ("stanza-id", "result", "enabled") and e.get("id"):
            out.append(e.get("id") or "")
        if e.name == "iq" and e.get("type") in ("get", "set") and e.get("id") != "disco":
            out.append(e.get("id") or "")
        for child in e.elements():
            walk(child)

    for item in items:
        if isinstance(item, Element):
            walk(item)
    return [i for i in out if len(i) > 7]


def differences(
    recorded: dict[str, list[Segment]], played: dict[str, list[Segment]], *, in_any_order: bool = False
) -> list[str]:
    """Every segment that differs, said so that one sees what to mend."""
    out = []
    for conn, own in recorded.items():
        other = played.get(conn, [])
        for number, segment in enumerate(own):
            heard = other[number].heard if number < len(other) else [("missing",)]
            ours, theirs = segment.heard, heard
            if in_any_order:
                ours, theirs = sorted(ours, key=repr), sorted(theirs, key=repr)
            if ours != theirs:
                out.append(_difference(conn, segment, heard))
    return out


def _difference(conn: str, segment: Segment, heard: list[Tree]) -> str:
    lines = [f"{conn} ({segment.note[:80]}) C {segment.sent[:160]}"]
    for sign, have, other in (("-", segment.heard, heard), ("+", heard, segment.heard)):
        rest = list(other)
        for item in have:
            if item in rest:
                rest.remove(item)
            else:
                lines.append(f"   {sign} {show(item)}"[:700])
    if len(lines) == 1:
        lines.append(
            f"   order: {[show(i)[:80] for i in segment.heard]} != {[show(i)[:80] for i in heard]}"[:1500]
        )
    return "\n".join(lines)


def show(item: Tree) -> str:
    """A tree in one line, namespaces shortened."""
    if len(item) < 3:
        return str(item)
    name, space, given, text, children = item
    short = re.split("[:/#]", str(space))[-1]
    return f"{short}:{name}{dict(given)}{text!r}[{' '.join(show(c) for c in children)}]"
