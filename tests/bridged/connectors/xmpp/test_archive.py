"""Questions to an archive, and its answers as a real server gave them."""

import json
from pathlib import Path
from xml.etree import ElementTree

from bridged.connectors.xmpp.archive import page_query, read_page
from bridged.connectors.xmpp.jid import parse_jid
from bridged.connectors.xmpp.seen import Archived, read_archived
from bridged.connectors.xmpp.stanza import MAM, RSM, child, child_text, form_fields

ROOM, ACCOUNT = parse_jid("ops@muc.localhost"), parse_jid("bridge@localhost/bridged.main")
TRANSCRIPT = Path(__file__).parents[3] / "vectors/xmpp/transcripts/08a-mam-muc.jsonl"


def test_forward_and_backward_are_asked_as_the_specification_says() -> None:
    forward = child(page_query(ROOM, ACCOUNT, "q", after="a7", limit=5), "query", MAM)
    backward = child(page_query(ROOM, ACCOUNT, "q", before=""), "query", MAM)
    assert forward is not None
    assert backward is not None
    assert forward.get("queryid") == "q"
    for query, after, before, limit in ((forward, "a7", None, "5"), (backward, None, "", "100")):
        paging = child(query, "set", RSM)
        assert paging is not None
        asked = [child_text(paging, name, RSM) for name in ("after", "before", "max")]
        assert asked == [after, before, limit]


def test_our_own_archive_is_asked_about_one_person_alone() -> None:
    asked = page_query(ACCOUNT.bare, ACCOUNT, "q", with_jid=parse_jid("alice@localhost"), since=1795507200.0)
    query = child(asked, "query", MAM)
    assert query is not None
    assert asked.get("to") is None
    assert form_fields(query) == {
        "FORM_TYPE": MAM,
        "with": "alice@localhost",
        "start": "2026-11-24T08:00:00.000Z",
    }


def test_a_recorded_archive_is_read_page_by_page() -> None:
    """Every answer of the transcript: complete or not, empty, past the end."""
    results: list[Archived] = []
    pages = []
    for line in TRANSCRIPT.read_text().splitlines():
        record = json.loads(line)
        if record["dir"] != "S" or not record["xml"].startswith(("<message", "<iq")):
            continue
        stanza = ElementTree.fromstring(f"<s xmlns='jabber:client'>{record['xml']}</s>")[0]
        archived = read_archived(stanza, MAM)
        if archived is not None:
            results.append(archived)
        elif child(stanza, "fin", MAM) is not None:
            pages.append(read_page(results, stanza))
            results = []
    assert pages[0].is_last  # a new archive
    assert [len(page.messages) for page in pages[1:4]] == [4, 4, 0]
    assert [page.is_last for page in pages[1:4]] == [False, True, True]
    assert all(message.at is not None for page in pages for message in page.messages)
