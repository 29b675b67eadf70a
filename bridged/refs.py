"""msgr:// references: what a channel, a person, a message is called, whatever the network.  Pure.

Parser and builder of the wire contract's section 6.  A reference in canonical form is a fine key: equal text is
the same thing, and `build(parse(text)) == text`.  What differs by network only (`Ops` and `#OPS` of an IRC
network, the resource of a JID) is folded by `same_channel`, `fold_irc` and `bare_jid`, never by the parser.
"""

from __future__ import annotations

import re
import unicodedata
from string import ascii_lowercase, ascii_uppercase
from typing import TypeVar
from urllib.parse import unquote_to_bytes

import attrs

from bridged.errors import BridgeError

# Specification constants (wire contract 6; RFC 3986 pchar).
SCHEME = "msgr://"
RESERVED_QUERY = ("from", "action", "capabilities")
UNESCAPED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@")

# Ours.
REF_CHARACTERS_MAX = 4096
POINTER_PARTS = {"irc": 2, "xmpp": 1, "matrix": 1, "telegram": 1}
"""How many segments point at a chat or a person; other services (echo) have one or more."""

_WORD = re.compile(r"[a-z][a-z0-9_]{1,31}")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_SEGMENT = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%-]*")
_QUERY = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# RFC 7622 3.3.1: what a local part may not hold.
_JID_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\"&'/:<>@]")
_DOMAIN_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\"&'/<>@]")


class RefError(BridgeError):
    """The text is no msgr:// reference, or a part cannot stand in one."""


@attrs.frozen(kw_only=True, slots=True)
class ChannelRef:
    """A chat, room or channel of a network: `msgr://channels/WORKSPACE/bridge/SERVICE/POINTER…`."""

    workspace: str
    service: str
    pointer: tuple[str, ...]
    """irc (network, channel) · xmpp (bare JID) · matrix (room id) · telegram (marked chat id), decoded."""

    def build(self) -> str:
        """The canonical text.  Raises RefError where a part is empty or a dot segment."""
        return _join("channels", self.workspace, "bridge", _service(self.service), *_pointer(self))

    @classmethod
    def parse(cls, text: str) -> ChannelRef:
        """Raises RefError: no reference, or one of another kind."""
        return _of_kind(cls, text)


@attrs.frozen(kw_only=True, slots=True)
class IdentityRef:
    """A person: `msgr://identity/bridges/SERVICE/POINTER…`, or of the house itself `msgr://identity/msgr/ID`."""

    service: str
    pointer: tuple[str, ...]

    @classmethod
    def native(cls, user_id: str) -> IdentityRef:
        """A person of the house itself."""
        return cls(service="msgr", pointer=(user_id,))

    @property
    def is_native(self) -> bool:
        return self.service == "msgr"

    def build(self) -> str:
        """The canonical text.  Raises RefError where a part is empty or a dot segment."""
        if self.is_native:
            if len(self.pointer) != 1:
                raise RefError("a native identity has one part")
            return _join("identity", "msgr", self.pointer[0])
        return _join("identity", "bridges", _service(self.service), *_pointer(self))

    @classmethod
    def parse(cls, text: str) -> IdentityRef:
        """Raises RefError: no reference, or one of another kind."""
        return _of_kind(cls, text)


@attrs.frozen(kw_only=True, slots=True)
class MessageRef:
    """A message: `msgr://messages/SERVICE/POINTER…/REMOTE_ID`, or `msgr://messages/msgr/CONVERSATION/ID`."""

    service: str
    pointer: tuple[str, ...]
    message_id: str

    def build(self) -> str:
        """The canonical text.  Raises RefError where a part is empty or a dot segment."""
        if self.service == "msgr" and len(self.pointer) != 1:
            raise RefError("a native message lies in one conversation")
        return _join("messages", _service(self.service), *_pointer(self), self.message_id)

    @classmethod
    def parse(cls, text: str) -> MessageRef:
        """Raises RefError: no reference, or one of another kind."""
        return _of_kind(cls, text)


@attrs.frozen(kw_only=True, slots=True)
class BridgeRef:
    """A bridge's configuration: `msgr://bridges/SERVICE/WORKSPACE/POINTER…`."""

    service: str
    workspace: str
    pointer: tuple[str, ...]

    def build(self) -> str:
        """The canonical text.  Raises RefError where a part is empty or a dot segment."""
        return _join("bridges", _service(self.service), self.workspace, *_pointer(self))

    @classmethod
    def parse(cls, text: str) -> BridgeRef:
        """Raises RefError: no reference, or one of another kind."""
        return _of_kind(cls, text)


@attrs.frozen(kw_only=True, slots=True)
class ShareRef:
    """An expiring share link: `msgr://share/links/KIND/TOKEN`."""

    kind: str
    token: str

    def build(self) -> str:
        """The canonical text.  Raises RefError where a part is empty or a dot segment."""
        return _join("share", "links", self.kind, self.token)

    @classmethod
    def parse(cls, text: str) -> ShareRef:
        """Raises RefError: no reference, or one of another kind."""
        return _of_kind(cls, text)


@attrs.frozen(kw_only=True, slots=True)
class AuthCompleteRef:
    """Where a browser login ends: `msgr://bridge-auth-complete/SESSION`."""

    session: str

    def build(self) -> str:
        """The canonical text.  Raises RefError where the part is empty or a dot segment."""
        return _join("bridge-auth-complete", self.session)

    @classmethod
    def parse(cls, text: str) -> AuthCompleteRef:
        """Raises RefError: no reference, or one of another kind."""
        return _of_kind(cls, text)


Ref = ChannelRef | IdentityRef | MessageRef | BridgeRef | ShareRef | AuthCompleteRef


@attrs.frozen(kw_only=True, slots=True)
class Link:
    """A reference with what may stand after it; query and fragment are kept as they were written."""

    ref: Ref
    query: str | None = None
    """`from`, `action` and `capabilities` are reserved; others pass."""
    fragment: str | None = None
    """The client's own state."""

    def build(self) -> str:
        text = self.ref.build()
        if self.query is not None:
            text += "?" + self.query
        return text if self.fragment is None else text + "#" + self.fragment


def parse_ref(text: str) -> Ref:
    """A reference alone, without query and fragment.

    Raises:
        RefError: Empty and dot segments, bad escapes, user information, a port, another scheme, unknown words.
    """
    link = parse_link(text)
    if link.query is not None or link.fragment is not None:
        raise RefError(f"a query or fragment has no place here: {text!a:.100}")
    return link.ref


def parse_link(text: str) -> Link:
    """A reference as it stands in a link, query and fragment apart.  Raises RefError as `parse_ref`."""
    if len(text) > REF_CHARACTERS_MAX:
        raise RefError(f"a reference has at most {REF_CHARACTERS_MAX} characters")
    if not text.startswith(SCHEME):
        raise RefError(f"a reference begins with {SCHEME}: {text!a:.100}")
    rest, has_fragment, fragment = text[len(SCHEME) :].partition("#")
    rest, has_query, query = rest.partition("?")
    if not _QUERY.fullmatch(fragment) or not _QUERY.fullmatch(query):
        raise RefError(f"query and fragment are escaped as a URL's: {text!a:.100}")
    # A URL's authority is our kind of reference, one of six plain words: user@ and :port never are.
    kind, *segments = rest.split("/")
    return Link(
        ref=_typed(kind, tuple(_decode(segment, text) for segment in segments), text),
        query=query if has_query else None,
        fragment=fragment if has_fragment else None,
    )


def _typed(kind: str, parts: tuple[str, ...], text: str) -> Ref:
    match kind, parts:
        case "channels", (workspace, "bridge", service, _, *_):
            pointer = _points(_service(service), parts[3:])
            return ChannelRef(workspace=workspace, service=service, pointer=pointer)
        case "identity", ("msgr", user_id):
            return IdentityRef.native(user_id)
        case "identity", ("bridges", service, _, *_) if service != "msgr":
            return IdentityRef(service=service, pointer=_points(_service(service), parts[2:]))
        case "messages", ("msgr", conversation, message):
            return MessageRef(service="msgr", pointer=(conversation,), message_id=message)
        case "messages", (service, _, _, *_) if service != "msgr":
            pointer = _points(_service(service), parts[1:-1])
            return MessageRef(service=service, pointer=pointer, message_id=parts[-1])
        case "bridges", (service, workspace, _, *_):
            pointer = _points(_service(service), parts[2:])
            return BridgeRef(service=service, workspace=workspace, pointer=pointer)
        case "share", ("links", share_kind, token):
            return ShareRef(kind=share_kind, token=token)
        case "bridge-auth-complete", (session,):
            return AuthCompleteRef(session=session)
    raise RefError(f"not a reference that we know: {text!a:.100}")


# Comparison.


def fold_irc(name: str, casemapping: str = "rfc1459") -> str:
    """A nick or channel as its network compares it; `casemapping` is the token of RPL_ISUPPORT.

    An unknown mapping is taken as `ascii`, which never joins what a server keeps apart among ASCII letters.
    """
    if casemapping == "rfc7613":
        return name.casefold()
    return name.translate(_IRC_FOLDS.get(casemapping, _IRC_FOLDS["ascii"]))


def bare_jid(jid: str) -> str:
    """The bare JID in the form in which JIDs are compared: resource gone, lower case, no final dot.

    A minimum of RFC 7622: local part and domain are case-mapped and normalised (NFC); the full PRECIS tables
    are not applied, so what an XMPP server would refuse may pass here.

    Raises:
        RefError: Empty parts, blanks, or characters that a local part may not have.
    """
    bare = jid.partition("/")[0]
    local, at, domain = bare.rpartition("@")
    local = unicodedata.normalize("NFC", local.lower())
    domain = unicodedata.normalize("NFC", domain.lower()).removesuffix(".")
    if (
        (at and not local)
        or not domain
        or any(len(part.encode()) > 1023 for part in (local, domain))
        or _JID_FORBIDDEN.search(local)
        or _DOMAIN_FORBIDDEN.search(domain)
    ):
        raise RefError(f"not a JID: {jid!a:.100}")
    return f"{local}@{domain}" if at else domain


def fold_channel(ref: ChannelRef, *, casemapping: str = "rfc1459") -> ChannelRef:
    """The reference that stands for all that mean the same channel.  Other services' pointers are opaque."""
    match ref.service, ref.pointer:
        case "irc", (network, channel):
            pointer: tuple[str, ...] = (network.lower(), fold_irc(channel, casemapping))
        case "xmpp", (jid,):
            pointer = (bare_jid(jid),)
        case _:
            return ref
    return attrs.evolve(ref, pointer=pointer)


def same_channel(one: ChannelRef, other: ChannelRef, *, casemapping: str = "rfc1459") -> bool:
    """Do both name one channel?"""
    return fold_channel(one, casemapping=casemapping) == fold_channel(other, casemapping=casemapping)


def same_identity(one: IdentityRef, other: IdentityRef, *, casemapping: str = "rfc1459") -> bool:
    """Do both name one person?  A JID keeps its resource here: in a room it is the occupant's nick."""
    return _fold_identity(one, casemapping) == _fold_identity(other, casemapping)


# Private.


def _fold_identity(ref: IdentityRef, casemapping: str) -> IdentityRef:
    match ref.service, ref.pointer:
        case "irc", (network, nick):
            return attrs.evolve(ref, pointer=(network.lower(), fold_irc(nick, casemapping)))
        case "xmpp", (jid,):
            _, slash, resource = jid.partition("/")
            return attrs.evolve(ref, pointer=(bare_jid(jid) + slash + resource,))
        case _:
            return ref


def _of_kind(kind: type[_R], text: str) -> _R:
    ref = parse_ref(text)
    if not isinstance(ref, kind):
        raise RefError(f"{_SAYS[kind]} is wanted, not {text!a:.100}")
    return ref


def _service(service: str) -> str:
    if not _WORD.fullmatch(service):
        raise RefError(f"not a service: {service!a:.60}")
    return service


def _pointer(ref: ChannelRef | IdentityRef | MessageRef | BridgeRef) -> tuple[str, ...]:
    return _points(ref.service, ref.pointer)


def _points(service: str, pointer: tuple[str, ...]) -> tuple[str, ...]:
    wanted = POINTER_PARTS.get(service)
    if not pointer or (wanted is not None and len(pointer) != wanted):
        raise RefError(f"what a {service} reference points at has {wanted or 'one or more'} parts")
    return pointer


def _join(*parts: str) -> str:
    text = SCHEME + "/".join(map(_encode, parts))
    if len(text) > REF_CHARACTERS_MAX:
        raise RefError(f"a reference has at most {REF_CHARACTERS_MAX} characters")
    return text


def _encode(part: str) -> str:
    _check_part(part, part)
    if UNESCAPED.issuperset(part):
        return part
    try:
        return "".join(
            char if char in UNESCAPED else "".join(f"%{byte:02X}" for byte in char.encode()) for char in part
        )
    except UnicodeEncodeError as exc:
        raise RefError(f"half a character: {part!a:.60}") from exc


def _decode(segment: str, text: str) -> str:
    if "%" not in segment:
        part = segment
    elif any(match[1] is None for match in _ESCAPE.finditer(segment)):
        raise RefError(f"an escape is % and two hex digits: {text!a:.100}")
    else:
        try:
            part = unquote_to_bytes(segment).decode()
        except UnicodeDecodeError as exc:
            raise RefError(f"escapes are of UTF-8: {text!a:.100}") from exc
    if not _SEGMENT.fullmatch(segment):
        raise RefError(f"outside A-Z a-z 0-9 -._~!$&'()*+,;=:@ everything is escaped: {text!a:.100}")
    _check_part(part, text)
    return part


def _check_part(part: str, text: str) -> None:
    if part in ("", ".", ".."):
        raise RefError(f"empty and dot segments are refused: {text!a:.100}")
    if _CONTROL.search(part):
        raise RefError(f"control characters are refused: {text!a:.100}")


_R = TypeVar("_R", ChannelRef, IdentityRef, MessageRef, BridgeRef, ShareRef, AuthCompleteRef)
_SAYS: dict[type, str] = {
    ChannelRef: "a channel, msgr://channels/WORKSPACE/bridge/SERVICE/…",
    IdentityRef: "an identity, msgr://identity/…",
    MessageRef: "a message, msgr://messages/…",
    BridgeRef: "a bridge's configuration, msgr://bridges/…",
    ShareRef: "a share link, msgr://share/links/KIND/TOKEN",
    AuthCompleteRef: "msgr://bridge-auth-complete/SESSION",
}
_IRC_FOLDS = {
    "ascii": str.maketrans(ascii_uppercase, ascii_lowercase),
    # RFC 1459 2.2: {}|^ are the lower case of []\~; the strict form leaves ^ and ~ apart.
    "rfc1459": str.maketrans(ascii_uppercase + "[]\\~", ascii_lowercase + "{}|^"),
    "rfc1459-strict": str.maketrans(ascii_uppercase + "[]\\", ascii_lowercase + "{}|"),
    "strict-rfc1459": str.maketrans(ascii_uppercase + "[]\\", ascii_lowercase + "{}|"),
}
