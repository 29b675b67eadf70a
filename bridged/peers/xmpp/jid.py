"""Addresses.  Pure."""

from __future__ import annotations

FORBIDDEN = frozenset(" \"&'/:<>@\0")


def bare(jid: str) -> str:
    """`user@host` of `user@host/resource`."""
    return jid.partition("/")[0]


def resource(jid: str) -> str:
    """The part behind the slash, "" without one."""
    return jid.partition("/")[2]


def local(jid: str) -> str:
    """The part before `@`, "" without one."""
    head, at, _ = bare(jid).rpartition("@")
    return head if at else ""


def host(jid: str) -> str:
    """The part that names a server."""
    return bare(jid).rpartition("@")[2]


def folded(jid: str) -> str:
    """The address with its bare part in lower case, as servers compare it."""
    head, slash, tail = jid.partition("/")
    return head.casefold() + slash + tail


def is_legal(jid: str) -> bool:
    """Is it an address at all?  Coarser than RFC 7622, and never crashes."""
    head, slash, tail = jid.partition("/")
    name, at, domain = head.rpartition("@")
    if not domain or "@" in name or (at and not name) or (slash and not tail):
        return False
    if any(c in FORBIDDEN for c in name) or any(c in FORBIDDEN or c.isspace() for c in domain):
        return False
    return all(len(part.encode()) <= 1023 for part in (name, domain, tail))
