"""Message archives: the questions and the answers.  Pure.                                         XEP-0313, XEP-0059"""

from __future__ import annotations

import attrs

from bridged.connectors.xmpp.jid import Jid
from bridged.connectors.xmpp.seen import Archived
from bridged.connectors.xmpp.stanza import (
    MAM,
    RSM,
    Element,
    child,
    child_text,
    element,
    form,
    iq,
    write_stamp,
)

# Ours.
PAGE_MESSAGES = 100


@attrs.frozen
class Page:
    """One page of an archive, oldest first."""

    messages: tuple[Archived, ...]
    is_last: bool
    """There is nothing more in the direction that was asked for."""


def page_query(
    archive: Jid,
    account: Jid,
    query_id: str,
    *,
    after: str | None = None,
    before: str | None = None,
    since: float | None = None,
    with_jid: Jid | None = None,
    limit: int = PAGE_MESSAGES,
) -> Element:
    """Ask for a page.

    Args:
        archive: A room, or our own bare JID.
        after: The page behind this id, going forward; with neither `after` nor `before`, from the start.
        before: The page before this id, going backward; "" from the end.
        since: Nothing older than this, seconds since 1970.
        with_jid: In our own archive: only what was said with them.
    """
    fields: dict[str, str] = {}
    if since is not None:
        fields["start"] = write_stamp(since)
    if with_jid is not None and archive == account.bare:
        fields["with"] = str(with_jid)
    query = element(
        "query",
        MAM,
        form(MAM, fields) if fields else None,
        element(
            "set",
            RSM,
            element("max", RSM, str(limit)),
            element("after", RSM, after) if after else None,
            element("before", RSM, before) if before is not None else None,
        ),
        attributes={"queryid": query_id},
    )
    return iq(None if archive == account.bare else str(archive), "set", query)


def read_page(messages: list[Archived], answer: Element) -> Page:
    """The page whose results came before this answer."""
    fin = child(answer, "fin", MAM)
    summary = child(fin, "set", RSM) if fin is not None else None
    # A page past the end names no last message, and some servers do not say `complete` then.
    ends = summary is None or not child_text(summary, "last", RSM)
    return Page(tuple(messages), ends or not messages or (fin is not None and fin.get("complete") == "true"))
