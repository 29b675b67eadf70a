"""What a network's names mean: its ISUPPORT, its case mapping, its prefixes.  Pure.

After RPL_ISUPPORT as https://modern.ircd.org and draft-hardy-irc-isupport describe it; every value is a server's
claim and is bounded before it is believed.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from bridged.refs import fold_irc


@attrs.define
class Support:
    """ISUPPORT of a connection; the defaults are what holds where a server says nothing."""

    casemapping: str = "rfc1459"
    channel_types: str = "#&"
    prefix_symbols: str = "@+"
    status_symbols: str = ""
    nick_length: int = 9
    line_length: int = 512
    network: str = ""

    def learn(self, tokens: Sequence[str]) -> None:
        """Take the tokens of one 005 line; what is malformed or unknown changes nothing."""
        for token in tokens:
            name, _, value = token.partition("=")
            if name.startswith("-"):
                name, value = name[1:], ""
            match name:
                case "CASEMAPPING":
                    self.casemapping = value.lower() or "rfc1459"
                case "CHANTYPES":
                    self.channel_types = value
                case "PREFIX":
                    self.prefix_symbols = value.partition(")")[2] or ("" if token == "PREFIX=" else "@+")
                case "STATUSMSG":
                    self.status_symbols = value
                case "NICKLEN" | "MAXNICKLEN" if value.isascii() and value.isdigit():
                    self.nick_length = min(max(int(value[:4]), 1), 255)
                case "NETWORK":
                    self.network = value

    def fold(self, name: str) -> str:
        return fold_irc(name, self.casemapping)

    def is_channel(self, name: str) -> bool:
        return name[:1] != "" and name[0] in self.channel_types

    def target_channel(self, target: str) -> str | None:
        """The channel that a message's target means, `@#ops` being `#ops`; None for a person."""
        bare = target.lstrip(self.status_symbols) if self.status_symbols else target
        return bare if self.is_channel(bare) else None
