"""Message archives and their pages (XEP-0313, XEP-0059).  Pure."""

from __future__ import annotations

import attrs

from bridged.peers.stamp import from_utc, utc_seconds
from bridged.peers.xmpp import jid, ns
from bridged.peers.xmpp.stanza import error, number, result
from bridged.peers.xmpp.xml import Element, el

PAGE_MAX = 50
ARCHIVE_MAX = 100_000
"""Messages that an archive keeps; the oldest go first."""


@attrs.frozen
class Kept:
    """One archived message."""

    id: str
    at: float
    stanza: Element
    with_jid: str
    """The other side's bare address, in a user's archive."""


@attrs.define
class Archive:
    """One user's or room's messages, oldest first."""

    kept: list[Kept] = attrs.field(factory=list)

    def add(self, entry: Kept) -> None:
        self.kept.append(entry)
        if len(self.kept) > ARCHIVE_MAX:
            del self.kept[: ARCHIVE_MAX // 10]

    def expire(self, count: int) -> None:
        """Forget the oldest `count` messages, as retention does."""
        del self.kept[:count]

    def metadata(self) -> Element:
        """Where the archive begins and ends."""
        found = el(ns.MAM, "metadata")
        for name, entry in zip(("start", "end"), (self.kept[:1], self.kept[-1:]), strict=True):
            for k in entry:
                found.add(el(ns.MAM, name, {"id": k.id, "timestamp": utc_seconds(k.at)}))
        return found

    def answer(self, request: Element, *, is_room: bool) -> list[Element]:
        """The results and the `fin`, or an error, of one query."""
        query = request.find(ns.MAM, "query")
        assert query is not None
        try:
            wanted = _filter(self.kept, query, is_room=is_room)
            page = _page(wanted, query)
        except KeyError:
            return [error(request, "item-not-found", kind="modify")]
        except ValueError as exc:
            return [error(request, "bad-request", text=str(exc))]
        out = [
            el(
                ns.CLIENT,
                "message",
                {"to": request.get("from"), "from": request.get("to")},
                el(
                    ns.MAM,
                    "result",
                    {"id": k.id, "queryid": query.get("queryid")},
                    el(
                        ns.FORWARD,
                        "forwarded",
                        None,
                        el(ns.DELAY, "delay", {"stamp": utc_seconds(k.at)}),
                        k.stanza,
                    ),
                ),
            )
            for k in page.entries
        ]
        if query.find(ns.MAM, "flip-page") is not None:
            out.reverse()
        rsm = el(ns.RSM, "set")
        if page.entries:
            ends = page.entries[0].id, page.entries[-1].id
            rsm.add(el(ns.RSM, "first", None, ends[0]), el(ns.RSM, "last", None, ends[1]))
        rsm.add(el(ns.RSM, "count", None, str(len(wanted))))
        fin = el(ns.MAM, "fin", {"complete": "true" if page.complete else None}, rsm)
        return [*out, result(request, fin)]


@attrs.frozen
class Page:
    entries: list[Kept]
    complete: bool


def _filter(kept: list[Kept], query: Element, *, is_room: bool) -> list[Kept]:
    """What the query's form lets through.

    Raises:
        ValueError: A date or number is none.
        KeyError: An id is not in the archive.
    """
    form = query.find(ns.DATA, "x")
    fields: dict[str, list[str]] = {}
    if form is not None:
        for field in form.find_all(ns.DATA, "field"):
            fields[field.get("var") or ""] = [v.text for v in field.find_all(ns.DATA, "value")]
    found = kept
    if not is_room and fields.get("with"):
        wanted = jid.folded(fields["with"][0])
        found = [k for k in found if jid.folded(k.with_jid) == jid.bare(wanted)]
    if fields.get("start"):
        start = from_utc(fields["start"][0])
        found = [k for k in found if k.at >= start]
    if fields.get("end"):
        end = from_utc(fields["end"][0])
        found = [k for k in found if int(k.at) <= end]
    if fields.get("ids"):
        known = {k.id for k in kept}
        if not set(fields["ids"]) <= known:
            raise KeyError("ids")
        found = [k for k in found if k.id in fields["ids"]]
    if fields.get("after-id"):
        found = found[_place(found, fields["after-id"][0]) + 1 :]
    if fields.get("before-id"):
        found = found[: _place(found, fields["before-id"][0])]
    return found


def _place(kept: list[Kept], wanted: str) -> int:
    for place, entry in enumerate(kept):
        if entry.id == wanted:
            return place
    raise KeyError(wanted)


def _page(wanted: list[Kept], query: Element) -> Page:
    rsm = query.find(ns.RSM, "set")
    size, after, before = PAGE_MAX, None, None
    if rsm is not None:
        size_text = rsm.text_of(ns.RSM, "max")
        if size_text is not None:
            asked = number(size_text)
            if asked is None:
                raise ValueError("the page's size is no number")
            size = min(asked, PAGE_MAX)
        after, before = rsm.text_of(ns.RSM, "after"), rsm.text_of(ns.RSM, "before")
    start = _place(wanted, after) + 1 if after else 0
    if before is not None:
        end = _place(wanted, before) if before else len(wanted)
        first = max(start, end - size)
        entries = wanted[first:end]
        return Page(entries, first == start)
    entries = wanted[start : start + size]
    return Page(entries, start + size >= len(wanted) and (size > 0 or not wanted))
