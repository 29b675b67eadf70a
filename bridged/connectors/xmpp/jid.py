"""JIDs: split, checked and brought to one form.  Pure.                                        RFC 7622

What two servers would call the same address must be one string here, for references and comparisons.  This
keeps to RFC 7622 with the Unicode of the running Python; what it lets pass, the server may still refuse.
"""

from __future__ import annotations

import re
import unicodedata

import attrs

from bridged.errors import BridgeError

# Specification constants.
PART_BYTES_MAX = 1023
LABEL_BYTES_MAX = 63
LOCAL_FORBIDDEN = frozenset("\"&'/:<>@")

_LABEL = re.compile(r"[^\W_](?:[\w-]*[^\W_])?")
_ADDRESS = re.compile(r"\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]+\]")


class JidError(BridgeError):
    """Text that is no JID."""


@attrs.frozen
class Jid:
    """`local@domain/resource`, in normal form; `local` and `resource` may be empty."""

    local: str
    domain: str
    resource: str = ""

    @property
    def bare(self) -> Jid:
        """Without the resource."""
        return self if not self.resource else Jid(self.local, self.domain)

    def with_resource(self, resource: str) -> Jid:
        """The same address with another resource.

        Raises:
            JidError: The resource cannot be one.
        """
        return Jid(self.local, self.domain, _resource(resource))

    def __str__(self) -> str:
        text = f"{self.local}@{self.domain}" if self.local else self.domain
        return f"{text}/{self.resource}" if self.resource else text


def parse_jid(text: str) -> Jid:
    """The JID in normal form.                                                            RFC 7622, section 3

    Raises:
        JidError: It is none.  The message says what is wrong and quotes nothing.
    """
    bare, slash, resource = text.partition("/")
    local, at, domain = bare.rpartition("@")
    if at and not local:
        raise JidError("a JID has something before its @")
    if slash and not resource:
        raise JidError("a JID has something behind its /")
    return Jid(
        _local(local) if at else "",
        _domain(domain),
        _resource(resource) if slash else "",
    )


def bare_jid(text: str) -> str:
    """The bare JID of any JID, in normal form, as text.

    Raises:
        JidError: It is none.
    """
    return str(parse_jid(text).bare)


def _local(text: str) -> str:
    """UsernameCaseMapped, section 3.3."""
    # Full- and half-width forms have their plain ones; then lower case, then composed.
    mapped = "".join(
        unicodedata.normalize("NFKC", c) if unicodedata.decomposition(c)[:6] in ("<wide>", "<narro") else c
        for c in text
    )
    mapped = unicodedata.normalize("NFC", mapped.lower())
    for c in mapped:
        # IdentifierClass: letters, digits, marks and printable ASCII; nothing with a compatibility form.
        if c in LOCAL_FORBIDDEN or c <= " " or c == "\x7f":
            raise JidError("the part of a JID before the @ has a character that is not allowed there")
        if c > "\x7f" and (
            unicodedata.category(c) not in ("Ll", "Lu", "Lo", "Lm", "Nd", "Mn", "Mc")
            or unicodedata.normalize("NFKC", c) != unicodedata.normalize("NFC", c)
        ):
            raise JidError("the part of a JID before the @ has a character that is not allowed there")
    return _sized(mapped)


def _domain(text: str) -> str:
    """Section 3.2: a name of labels, in its Unicode form, or a bracketed IPv6 address."""
    if _ADDRESS.fullmatch(text):
        return text.lower()
    text = unicodedata.normalize("NFC", text.removesuffix(".").lower())
    labels = []
    for label in re.split(r"[.\u3002\uff0e\uff61]", text):
        if label.startswith("xn--"):
            try:
                label = label[4:].encode("ascii").decode("punycode")
            except (UnicodeError, ValueError):
                raise JidError("the domain of a JID has a broken xn-- label") from None
        if not _LABEL.fullmatch(label):
            raise JidError("the domain of a JID is a host name, labels joined by dots")
        if len(label.encode()) > LABEL_BYTES_MAX:
            raise JidError(f"a label of the domain of a JID has at most {LABEL_BYTES_MAX} bytes")
        labels.append(label)
    return _sized(".".join(labels))


def _resource(text: str) -> str:
    """OpaqueString, section 3.4."""
    spaced = "".join(" " if unicodedata.category(c) == "Zs" else c for c in text)
    mapped = unicodedata.normalize("NFC", spaced)
    if not mapped or any(unicodedata.category(c) in ("Cc", "Cs", "Cn", "Zl", "Zp") for c in mapped):
        raise JidError("the resource of a JID is empty or has a control character")
    return _sized(mapped)


def _sized(text: str) -> str:
    if len(text.encode()) > PART_BYTES_MAX:
        raise JidError(f"a part of a JID has at most {PART_BYTES_MAX} bytes")
    return text
