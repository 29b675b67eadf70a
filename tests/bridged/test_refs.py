"""msgr:// references: canonical text in, the same text out; anything else a RefError."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.errors import BridgeError
from bridged.refs import (
    AuthCompleteRef,
    BridgeRef,
    ChannelRef,
    IdentityRef,
    MessageRef,
    RefError,
    ShareRef,
    bare_jid,
    fold_irc,
    parse_link,
    parse_ref,
    same_channel,
    same_identity,
)

CANONICAL = {
    "msgr://channels/acme/bridge/irc/irc.libera.chat/%23ops": ChannelRef(
        workspace="acme", service="irc", pointer=("irc.libera.chat", "#ops")
    ),
    "msgr://channels/acme/bridge/xmpp/ops@conference.example.org": ChannelRef(
        workspace="acme", service="xmpp", pointer=("ops@conference.example.org",)
    ),
    "msgr://channels/acme/bridge/matrix/!ops:example.org": ChannelRef(
        workspace="acme", service="matrix", pointer=("!ops:example.org",)
    ),
    "msgr://channels/acme/bridge/matrix/!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM": ChannelRef(
        workspace="acme", service="matrix", pointer=("!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM",)
    ),
    "msgr://channels/acme/bridge/telegram/-1001234567890": ChannelRef(
        workspace="acme", service="telegram", pointer=("-1001234567890",)
    ),
    "msgr://channels/acme/bridge/echo/lobby": ChannelRef(
        workspace="acme", service="echo", pointer=("lobby",)
    ),
    "msgr://identity/msgr/kari": IdentityRef.native("kari"),
    "msgr://identity/bridges/matrix/@ola:example.org": IdentityRef(
        service="matrix", pointer=("@ola:example.org",)
    ),
    "msgr://identity/bridges/irc/irc.libera.chat/ola%7C%5Baway%5D": IdentityRef(
        service="irc", pointer=("irc.libera.chat", "ola|[away]")
    ),
    "msgr://identity/bridges/xmpp/ops@conference.example.org%2FOla%20N": IdentityRef(
        service="xmpp", pointer=("ops@conference.example.org/Ola N",)
    ),
    "msgr://messages/msgr/ops/7f3a": MessageRef(service="msgr", pointer=("ops",), message_id="7f3a"),
    "msgr://messages/matrix/!r:h/$ev": MessageRef(service="matrix", pointer=("!r:h",), message_id="$ev"),
    "msgr://messages/irc/irc.libera.chat/%23ops/Zx91kT": MessageRef(
        service="irc", pointer=("irc.libera.chat", "#ops"), message_id="Zx91kT"
    ),
    "msgr://messages/telegram/-100123/512": MessageRef(
        service="telegram", pointer=("-100123",), message_id="512"
    ),
    "msgr://bridges/irc/acme/irc.libera.chat/%23ops": BridgeRef(
        service="irc", workspace="acme", pointer=("irc.libera.chat", "#ops")
    ),
    "msgr://share/links/image/Abc-_9": ShareRef(kind="image", token="Abc-_9"),
    "msgr://bridge-auth-complete/s1": AuthCompleteRef(session="s1"),
    "msgr://identity/msgr/k%C3%A5re%F0%9F%98%80": IdentityRef.native("kåre😀"),
}


@pytest.mark.parametrize("text", CANONICAL)
def test_canonical_text_comes_back(text: str) -> None:
    assert parse_ref(text) == CANONICAL[text]
    assert parse_ref(text).build() == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "msgr://",
        "msgr:///channels/acme",
        "http://channels/acme/bridge/echo/a",
        "MSGR://identity/msgr/kari",
        "msgr://identity/msgr/",
        "msgr://identity/msgr//kari",
        "msgr://identity/msgr/kari/",
        "msgr://identity/msgr/.",
        "msgr://identity/msgr/%2E%2e",
        "msgr://identity/msgr/a%0D%0AQUIT",
        "msgr://identity/msgr/a%",
        "msgr://identity/msgr/a%4",
        "msgr://identity/msgr/a%zz",
        "msgr://identity/msgr/%FF",
        "msgr://identity/msgr/kåre",
        "msgr://identity/msgr/a b",
        "msgr://identity/msgr/a[b]",
        "msgr://user@identity/msgr/kari",
        "msgr://identity:80/msgr/kari",
        "msgr://identity/bridges/msgr/kari",
        "msgr://identity/bridge/irc/net/ola",
        "msgr://channels/acme/bridges/irc/net/%23ops",
        "msgr://channels/acme/bridge/irc/net",
        "msgr://channels/acme/bridge/irc/net/%23ops/more",
        "msgr://channels/acme/bridge/xmpp/a@b/resource",
        "msgr://channels/acme/bridge/IRC/net/%23ops",
        "msgr://messages/msgr/ops",
        "msgr://identity/msgr/kari?from=x",
        "msgr://identity/msgr/kari#top",
        "msgr://identity/msgr/" + "a" * 5000,
        "msgr://what/ever",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(RefError):
        parse_ref(text)


def test_sloppy_escapes_become_canonical() -> None:
    ref = parse_ref("msgr://channels/%61cme/bridge/irc/irc.libera.chat/%23%6fps%c3%a5")
    assert ref.build() == "msgr://channels/acme/bridge/irc/irc.libera.chat/%23ops%C3%A5"


def test_a_link_keeps_its_query_and_fragment() -> None:
    text = "msgr://identity/msgr/kari?from=msgr:%2F%2Fx&action=open#tab=2"
    link = parse_link(text)
    assert link.ref == IdentityRef.native("kari")
    assert (link.query, link.fragment) == ("from=msgr:%2F%2Fx&action=open", "tab=2")
    assert link.build() == text
    assert parse_link("msgr://identity/msgr/kari?").build() == "msgr://identity/msgr/kari?"
    with pytest.raises(RefError):
        parse_link("msgr://identity/msgr/kari?a=%4")


def test_another_kind_is_refused_by_name() -> None:
    assert IdentityRef.parse("msgr://identity/msgr/kari").is_native
    with pytest.raises(RefError, match="a channel"):
        ChannelRef.parse("msgr://identity/msgr/kari")
    with pytest.raises(RefError, match="an identity"):
        IdentityRef.parse("msgr://share/links/image/x")


@pytest.mark.parametrize(
    "ref",
    [
        IdentityRef.native(""),
        IdentityRef.native(".."),
        IdentityRef.native("a\nb"),
        IdentityRef.native("\ud800"),
        IdentityRef(service="msgr", pointer=("a", "b")),
        IdentityRef(service="Bad Service", pointer=("a",)),
        ChannelRef(workspace="a", service="irc", pointer=("net",)),
        ChannelRef(workspace="a", service="echo", pointer=()),
        MessageRef(service="msgr", pointer=("a", "b"), message_id="1"),
        IdentityRef.native("x" * 5000),
    ],
)
def test_what_cannot_be_written_is_not_built(ref: IdentityRef | ChannelRef | MessageRef) -> None:
    with pytest.raises(RefError):
        ref.build()


part = st.text(min_size=1, max_size=20).filter(
    lambda text: text not in (".", "..") and not any(c < " " or c == "\x7f" for c in text)
)
refs = st.one_of(
    st.builds(ChannelRef, workspace=part, service=st.just("irc"), pointer=st.tuples(part, part)),
    st.builds(
        ChannelRef, workspace=part, service=st.just("echo"), pointer=st.lists(part, min_size=1).map(tuple)
    ),
    st.builds(IdentityRef.native, part),
    st.builds(IdentityRef, service=st.sampled_from(["xmpp", "matrix"]), pointer=st.tuples(part)),
    st.builds(MessageRef, service=st.just("xmpp"), pointer=st.tuples(part), message_id=part),
    st.builds(ShareRef, kind=part, token=part),
)


@given(refs)
def test_whatever_can_be_built_is_read_back(ref: ChannelRef | IdentityRef | MessageRef | ShareRef) -> None:
    text = ref.build()
    assert parse_ref(text) == ref
    assert parse_ref(text).build() == text
    assert text.isascii() and "?" not in text and "#" not in text


@given(st.text() | st.text(alphabet="msgr:/.%2F#?@chanelsidty").map("msgr://".__add__))
def test_any_text_gives_a_reference_or_a_ref_error(text: str) -> None:
    with suppress(RefError):
        once = parse_link(text).build()
        assert parse_link(once).build() == once


def test_irc_names_are_compared_as_their_network_does() -> None:
    assert fold_irc("Ola[A]~\\") == "ola{a}^|"
    assert fold_irc("Ola[A]~\\", "rfc1459-strict") == "ola{a}~|"
    assert fold_irc("Ola[A]~\\Å", "ascii") == "ola[a]~\\Å"
    assert fold_irc("ÅSE", "rfc7613") == "åse"
    assert fold_irc("A[", "unheard-of") == "a["
    one = ChannelRef.parse("msgr://channels/acme/bridge/irc/irc.libera.chat/%23Ops%5B1%5D")
    two = ChannelRef.parse("msgr://channels/acme/bridge/irc/IRC.libera.chat/%23ops%7B1%7D")
    assert same_channel(one, two)
    assert not same_channel(one, two, casemapping="ascii")
    assert same_identity(
        IdentityRef(service="irc", pointer=("n", "OLA")), IdentityRef(service="irc", pointer=("n", "ola"))
    )


def test_jids_are_compared_bare_in_channels_and_with_the_nick_in_persons() -> None:
    assert bare_jid("Ola@Example.ORG./phone") == "ola@example.org"
    assert bare_jid("conference.example.org") == "conference.example.org"
    for bad in ("", "@example.org", "a b@example.org", "ola@", "a@b@c", "<x>@d", "ola@exa mple"):
        with pytest.raises(RefError):
            bare_jid(bad)
    room = "msgr://channels/acme/bridge/xmpp/ops@conference.example.org"
    assert same_channel(ChannelRef.parse(room), ChannelRef.parse(room.replace("ops", "OPS")))
    ola = IdentityRef(service="xmpp", pointer=("ops@c.example.org/Ola",))
    assert same_identity(ola, IdentityRef(service="xmpp", pointer=("OPS@c.example.org/Ola",)))
    assert not same_identity(ola, IdentityRef(service="xmpp", pointer=("ops@c.example.org/ola",)))


def test_opaque_pointers_differ_by_any_character() -> None:
    one = ChannelRef(workspace="a", service="matrix", pointer=("!Ops:h",))
    assert not same_channel(one, ChannelRef(workspace="a", service="matrix", pointer=("!ops:h",)))


def test_a_ref_error_is_an_error_of_the_house() -> None:
    assert issubclass(RefError, BridgeError)
