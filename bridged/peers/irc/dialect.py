"""What differs between the servers that the fake can be.  Pure.

Every text and number here was seen on the wire of InspIRCd 3.15 and ngIRCd 26.1; the replay tests hold them.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs

CAPABILITIES = [
    "account-notify",
    "account-tag",
    "away-notify",
    "batch",
    "cap-notify",
    "chghost",
    "echo-message",
    "extended-join",
    "extended-monitor",
    "inspircd.org/poison",
    "inspircd.org/standard-replies",
    "invite-notify",
    "labeled-response",
    "message-tags",
    "multi-prefix",
    "server-time",
    "setname",
    "userhost-in-names",
]
"""What InspIRCd offers without services; `sasl` comes with them."""

EXTRA_CAPABILITIES = ("draft/multiline", "draft/chathistory", "draft/event-playback")
"""Spoken after the IRCv3 specifications, offered only when asked for: neither real server has them."""


@attrs.frozen(kw_only=True)
class Dialect:
    """One server software's way of speaking."""

    name: str
    version: str
    server: str
    rfc1459: bool
    """CASEMAPPING: rfc1459 folds []\\~ too; otherwise ascii."""
    nick_max: int
    user_max: int
    channel_max: int
    topic_max: int
    channel_types: str
    prefix_modes: str
    prefix_signs: str
    list_modes: str
    flag_modes: str
    parameter_modes: str
    """Channel modes with a parameter, beside the key, the limit and those of members."""
    new_channel_modes: str
    user_modes: str
    capabilities: tuple[str, ...]
    isupport: tuple[str, ...]
    texts: Mapping[str, str]
    minimum: Mapping[str, int]
    """Parameters that a command needs at least, else 461."""
    joined: Mapping[str, int]
    """Commands whose surplus parameters are joined into the last (InspIRCd)."""
    maximum: Mapping[str, int]
    """Parameters that a command takes at most, else 461 (ngIRCd)."""
    tags: bool
    tilde: str
    cut_mark: str
    motd: tuple[str, ...]
    burst_lines: int
    """Lines that the flood meter lets pass at once."""

    def fold(self, name: str) -> str:
        """A nick or channel name as the server compares it."""
        return name.translate(_FOLD_RFC1459 if self.rfc1459 else _FOLD_ASCII)

    def is_channel(self, name: str) -> bool:
        """Does the name stand for a channel?"""
        return name[:1] != "" and name[0] in self.channel_types

    def is_nick(self, name: str) -> bool:
        """Is the name legal for a nick, its length apart?"""
        return (
            name != ""
            and (name[0].isalpha() or name[0] in _SPECIAL)
            and all(c.isascii() and (c.isalnum() or c in _SPECIAL or c == "-") for c in name)
        )


_SPECIAL = "[]\\`_^{|}"
_FOLD_ASCII = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
_FOLD_RFC1459 = _FOLD_ASCII | {
    ord("["): ord("{"),
    ord("]"): ord("}"),
    ord("\\"): ord("|"),
    ord("~"): ord("^"),
}

_MINIMUM = {
    "JOIN": 1, "PART": 1, "TOPIC": 1, "KICK": 2, "MODE": 1, "PRIVMSG": 2, "NOTICE": 2, "TAGMSG": 1, "WHO": 1,
    "WHOIS": 1, "WHOWAS": 1, "USERHOST": 1, "ISON": 1, "MONITOR": 1, "PING": 1, "OPER": 2, "KILL": 2, "STATS": 1,
    "AUTHENTICATE": 1, "CAP": 1, "USER": 4, "PASS": 1, "SETNAME": 1, "SQUIT": 1, "CONNECT": 1, "SAMODE": 2,
    "SANICK": 2, "KLINE": 1, "BATCH": 1, "CHATHISTORY": 1, "DIE": 1,
}  # fmt: skip

INSPIRCD = Dialect(
    name="inspircd",
    version="InspIRCd-3",
    server="a.localhost",
    rfc1459=True,
    nick_max=30,
    user_max=10,
    channel_max=64,
    topic_max=307,
    channel_types="#",
    prefix_modes="ov",
    prefix_signs="@+",
    list_modes="b",
    flag_modes="MRimnprst",
    parameter_modes="H",
    new_channel_modes="nt",
    user_modes="BHIRcdikorsw",
    capabilities=tuple(CAPABILITIES),
    isupport=(
        "AWAYLEN=200 BOT=B CASEMAPPING=rfc1459 CHANLIMIT=#:20 CHANMODES=b,k,Hl,MRimnprst CHANNELLEN=64 CHANTYPES=# "
        "ELIST=CMNTU EXTBAN=,RUw HOSTLEN=64 KEYLEN=32 KICKLEN=255",
        "LINELEN=512 MAXLIST=b:100 MAXTARGETS=20 MODES=20 MONITOR=30 NAMELEN=128 NAMESX NETWORK={network} NICKLEN=30 "
        "PREFIX=(ov)@+ SAFELIST STATUSMSG=@+ TOPICLEN=307",
        "UHNAMES USERLEN=10 USERMODES=,,s,BHIRcdikorw WHOX",
    ),
    texts={
        "221": "",
        "305": "You are no longer marked as being away",
        "306": "You have been marked as being away",
        "315": "End of /WHO list.",
        "318": "End of /WHOIS list.",
        "317": "seconds idle, signon time",
        "323": "End of channel list.",
        "330": "is logged in as",
        "331": "No topic is set.",
        "337": "End of INVITE list",
        "365": "End of /LINKS list.",
        "366": "End of /NAMES list.",
        "368": "End of channel ban list",
        "369": "End of WHOWAS",
        "376": "End of message of the day.",
        "401": "No such nick",
        "402": "No such server",
        "403": "No such channel",
        "404n": "You cannot send external messages to this channel whilst the +n (noextmsg) mode is set.",
        "404m": "You cannot send messages to this channel whilst the +m (moderated) mode is set.",
        "404b": "You cannot send messages to this channel whilst banned.",
        "406": "There was no such nickname",
        "409": "No origin specified",
        "410": "Invalid CAP subcommand",
        "412": "No text to send",
        "417": "Input line was too long",
        "421": "Unknown command",
        "431": "No nickname given",
        "432": "Erroneous Nickname",
        "432long": "Erroneous Nickname",
        "433": "Nickname is already in use.",
        "441": "They are not on that channel",
        "442": "You're not on that channel",
        "442outside": "You're not on that channel!",
        "443": "is already on channel",
        "451": "You have not registered.",
        "461": "Not enough parameters.",
        "462": "You may not reregister",
        "464": "Password incorrect",
        "465": "banned",
        "467": "Channel key already set",
        "471": "Cannot join channel (channel is full)",
        "472": "is not a recognised channel mode.",
        "473": "Cannot join channel (invite only)",
        "474": "Cannot join channel (you're banned)",
        "475": "Cannot join channel (incorrect channel key)",
        "476": "Invalid channel name",
        "481": "Permission Denied - You do not have the required operator privileges",
        "491": "Invalid oper credentials",
        "502": "Can't change mode for other users",
        "733": "End of MONITOR list",
        "900": "You are now logged in as {account}",
        "901": "You are now logged out",
        "903": "SASL authentication successful",
        "904": "SASL authentication failed",
        "905": "SASL message too long",
        "906": "SASL authentication aborted",
        "908": "are available SASL mechanisms",
    },
    minimum=_MINIMUM,
    joined={"PRIVMSG": 2, "NOTICE": 2, "TOPIC": 2, "KICK": 3, "PART": 2, "QUIT": 1, "USER": 4, "KILL": 2},
    maximum={},
    tags=True,
    tilde="",
    cut_mark="",
    motd=("first line", " ", "third line"),
    burst_lines=10,
)

NGIRCD = Dialect(
    name="ngircd",
    version="ngircd-26.1",
    server="ng.localhost",
    rfc1459=False,
    nick_max=16,
    user_max=9,
    channel_max=50,
    topic_max=490,
    channel_types="#&+",
    prefix_modes="qaohv",
    prefix_signs="~&@%+",
    list_modes="beI",
    flag_modes="imMnOPQRstVz",
    parameter_modes="",
    new_channel_modes="",
    user_modes="abBcCFiIoqrRswx",
    capabilities=("multi-prefix",),
    isupport=(
        "RFC2812 IRCD=ngIRCd CHARSET=UTF-8 CASEMAPPING=ascii PREFIX=(qaohv)~&@%+ CHANTYPES=#&+ "
        "CHANMODES=beI,k,l,imMnOPQRstVz CHANLIMIT=#&+:100",
        "CHANNELLEN=50 NICKLEN=16 TOPICLEN=490 AWAYLEN=127 KICKLEN=400 MODES=5 MAXLIST=beI:50 EXCEPTS=e INVEX=I "
        "PENALTY FNC",
    ),
    texts={
        "221": "",
        "305": "You are no longer marked as being away",
        "306": "You have been marked as being away",
        "315": "End of WHO list",
        "318": "End of WHOIS list",
        "317": "seconds idle, signon time",
        "323": "End of LIST",
        "330": "is logged in as",
        "331": "No topic is set",
        "365": "End of LINKS list",
        "366": "End of NAMES list",
        "368": "End of channel ban list",
        "347": "End of channel invite list",
        "349": "End of channel exception list",
        "369": "End of WHOWAS list",
        "376": "End of MOTD command",
        "401": "No such nick or channel name",
        "402": "No such server",
        "403": "No such channel",
        "404n": "Cannot send to channel",
        "404m": "Cannot send to channel",
        "404b": "Cannot send to channel",
        "406": "There was no such nickname",
        "409": "No origin specified",
        "410": "Invalid CAP subcommand",
        "411": "No recipient given ({command})",
        "412": "No text to send",
        "421": "Unknown command",
        "431": "No nickname given",
        "432": "Erroneous nickname",
        "432long": "Nickname too long, max. 16 characters",
        "433": "Nickname already in use",
        "441": "They aren't on that channel",
        "442": "You are not on that channel",
        "442outside": "You are not on that channel",
        "443": "is already on channel",
        "451": "Connection not registered",
        "461": "Syntax error",
        "462": "Connection already registered",
        "464": "Invalid password",
        "471": "Cannot join channel (+l) -- Channel is full, try later",
        "472": "is unknown mode char for {channel}",
        "473": "Cannot join channel (+i) -- Invited users only",
        "474": "Cannot join channel (+b) -- You are banned",
        "475": "Cannot join channel (+k) -- Wrong channel key",
        "476": "No such channel",
        "481": "Permission denied",
        "482": "You are not channel operator",
        "482kick": "Your privileges are too low",
        "502": "Can't set/get mode for other users",
    },
    minimum={**_MINIMUM, "PRIVMSG": 0, "NOTICE": 0, "WHO": 0, "PING": 0, "NICK": 1, "WHOIS": 0},
    joined={},
    maximum={
        "PRIVMSG": 2,
        "NOTICE": 2,
        "TOPIC": 2,
        "PART": 2,
        "JOIN": 2,
        "KICK": 3,
        "NICK": 1,
        "WHO": 2,
        "USER": 4,
        "CAP": 2,
        "AWAY": 1,
        "INVITE": 2,
    },
    tags=False,
    tilde="~",
    cut_mark="[CUT]",
    motd=("- hi",),
    burst_lines=5,
)

DIALECTS: Mapping[str, Dialect] = {"inspircd": INSPIRCD, "ngircd": NGIRCD}
