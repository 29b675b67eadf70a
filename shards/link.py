"""A Noise session over the outer frames: who is there, and nothing changed, lost, repeated or out of order.

Pure: bytes and the time go in, events and bytes come out.  One object a ZeroMQ routing id on the listening
side (`Responder`), one a connection on the other (`Initiator`).

    link = Initiator(static=KeyPair.from_private(identity.noise_private), responder_public=server_public,
                     shard="acme", token_bytes=env.token_bytes, now=now)      # invite=Invite(id, secret) to enrol
    for event in link.start():                      # NeedSend(hello), NeedSend(handshake)
        frames.send_nowait(b"", event.frame)
    for event in link.receive_frame(frame, now):    # NeedSend | Established | Data | Lost, in this order of time
        ...
    frames.send_nowait(b"", link.seal(plaintext, now))

    link = Responder(static=server_key, shard="acme", admit=knows_key, psk_for=secret_of_invite,
                     token_bytes=env.token_bytes, now=now)

`receive_frame` never raises, whatever the bytes.  After `Lost` the link is dead: it answers nothing more and
the connection is to be cut (what is to be sent first came as `NeedSend` before it).

The frames (big-endian; the whole hello frame is the prologue of the handshake):

    hello      u8 0 · 4s magic · u8 version · u8 pattern · u8 role · u8 n · shard · u8 n · invite id
    handshake  u8 1 · Noise handshake message with an empty payload
    data       u8 2 · u64 nonce · Noise transport message; the nine bytes before it are its associated data
    reset      u8 3 · u8 reason.  Not authenticated: like a TCP RST, it can end a link and do nothing else
    rekey      u8 4 · as data; after this frame its direction goes on under Rekey() of its key

    initiator                                        responder
       hello, handshake 1  ------------------------->   admit(static key), psk_for(invite id)
                           <-------------------------   handshake 2
       [handshake 3, XXpsk3 only] ------------------>
       data 0, empty       ------------------------->   Established
       Established         <-------------------------   data 0, empty

Each side says `Established` only when the other has proven, by its first and empty data frame, that it holds
the session's keys: a replayed first message or a stolen responder key makes no session (Noise rev 34, 7.7),
and no command can ride in a handshake.  Who rekeys when needs no agreement of clocks: the sender marks the
frame, by count or by time.
"""

from __future__ import annotations

import abc
import enum
import struct
from collections.abc import Callable
from typing import TypeAlias

import attrs

from noise import (
    PLAINTEXT_BYTES_MAX,
    HandshakeState,
    KeyPair,
    NoiseError,
    Protocol,
    TransportState,
    protocol,
)
from shards.errors import LocalProtocolError

# -- specification constants ------------------------------------------------------------------------------
KIND_HELLO, KIND_HANDSHAKE, KIND_DATA, KIND_RESET, KIND_REKEY = range(5)
MAGIC = b"SHRD"
VERSION = 1
ROLE_CLIENT = 1
"""The one role so far; another shard would be 2."""
HEADER_BYTES = 9
FRAME_BYTES_MAX = HEADER_BYTES + 65_535
NAME_BYTES_MAX = 64
"""A shard's name, and an invite's id."""

# -- ours -------------------------------------------------------------------------------------------------
HANDSHAKE_S_MAX = 5.0
REKEY_FRAMES = 65_536
"""At most 4 GiB under one key."""
REKEY_S = 600.0

_HEADER = struct.Struct(">BQ")
_HELLO = struct.Struct(">B4sBBB")


class Reason(enum.IntEnum):
    """Why a link is lost; the number is the reset frame's second byte."""

    NO_SESSION = 1
    """No such session here, or a frame of it was lost, repeated or changed: connect anew, send again."""
    REFUSED = 2
    """The key or invite is unknown, used up, suspended or revoked."""
    PROTOCOL = 3
    """The other side does not speak this protocol or this version of it."""
    OTHER_SHARD = 4
    """Another shard's broker answers at this endpoint."""
    BUSY = 5
    """Too many links or half-open handshakes: try later."""
    CLOSING = 6
    """The other side is going down, or has no more use for the link."""


@attrs.frozen(slots=True)
class NeedSend:
    """Send this frame to the peer, now."""

    frame: bytes


@attrs.frozen(slots=True)
class Established:
    """The peer is proven to be `remote_static`, alive, in this session; `seal` works from here on."""

    remote_static: bytes
    invite_id: str | None
    """The invite whose secret was used; None where the key was known before (or on the initiator's side)."""


@attrs.frozen(slots=True)
class Data:
    """A plaintext frame, 1 to 65,519 bytes, in order."""

    plaintext: bytes


@attrs.frozen(slots=True)
class Lost:
    """The link is over.  `by_peer`: a reset frame said so (which proves nothing about who wrote it)."""

    reason: Reason
    detail: str = ""
    by_peer: bool = False


Event: TypeAlias = NeedSend | Established | Data | Lost


@attrs.frozen
class Invite:
    """What a newcomer was handed: an id that is sent in clear, and 32 secret bytes that never are."""

    id: str
    secret: bytes = attrs.field(repr=False)


class Link(abc.ABC):
    """What both sides share: the session once it stands.  Made as `Initiator` or `Responder`."""

    def __init__(self, *, now: float) -> None:
        self._opened_at = now
        self._handshake: HandshakeState | None = None
        self._transport: TransportState | None = None
        self._invite_id: str | None = None
        self._established = False
        self._lost = False
        self._sent = 0
        self._received = 0
        self._rekey_at = now + REKEY_S

    @property
    def is_established(self) -> bool:
        return self._established and not self._lost

    @property
    def is_lost(self) -> bool:
        return self._lost

    @property
    def remote_static(self) -> bytes | None:
        """The peer's key; proven only once `is_established`."""
        return self._transport.remote_static if self._transport is not None else None

    @property
    def handshake_hash(self) -> bytes | None:
        """The same on both sides of this session and of no other; None before the handshake is done."""
        return self._transport.handshake_hash if self._transport is not None else None

    def is_overdue(self, now: float) -> bool:
        """The handshake has had its five seconds and is not done: `reset` it."""
        return not self._established and now - self._opened_at > HANDSHAKE_S_MAX

    def seal(self, plaintext: bytes, now: float) -> bytes:
        """The frame that carries `plaintext`; frames must be sent in the order they were sealed.

        A sealed frame that is not sent (the socket was full) loses the session: seal what can be sent.

        Args:
            plaintext: 1 to 65,519 bytes.
            now: Trio's clock, seconds; decides with the count about rekeying.

        Raises:
            LocalProtocolError: The link is not established, or the plaintext has no size a frame can have.
        """
        if not self.is_established:
            raise LocalProtocolError("the link is not established: nothing can be sent on it")
        if not 0 < len(plaintext) <= PLAINTEXT_BYTES_MAX:
            raise LocalProtocolError(
                f"a frame carries 1 to {PLAINTEXT_BYTES_MAX} bytes, not {len(plaintext)}"
            )
        return self._seal(plaintext, now)

    def receive_frame(self, frame: bytes, now: float) -> list[Event]:
        """What a frame of the peer means; never raises.  A lost link is silent."""
        if self._lost:
            return []
        try:
            return self._receive(frame, now)
        except _Fault as fault:
            return self._lose(fault.reason, str(fault))
        except NoiseError as exc:
            # One answer for every kind of fault: a stranger learns nothing about which check failed.
            return self._lose(Reason.REFUSED if self._transport is None else Reason.NO_SESSION, str(exc))

    def reset(self, reason: Reason) -> bytes:
        """End the link from this side: the frame to send before the connection is cut."""
        self._lost = True
        return bytes((KIND_RESET, reason))

    # -- inside -------------------------------------------------------------------------------------------

    def _receive(self, frame: bytes, now: float) -> list[Event]:
        if not frame or len(frame) > FRAME_BYTES_MAX:
            raise _Fault(Reason.PROTOCOL, f"a frame has 1 to {FRAME_BYTES_MAX} bytes, not {len(frame)}")
        kind = frame[0]
        if kind in (KIND_DATA, KIND_REKEY):
            return self._receive_data(frame, now)
        if kind == KIND_RESET:
            self._lost = True
            return [Lost(_reason_of(frame), "the peer reset the link", by_peer=True)]
        if kind == KIND_HELLO:
            return self._receive_hello(frame)
        if kind == KIND_HANDSHAKE:
            return self._receive_handshake(frame[1:], now)
        raise _Fault(Reason.PROTOCOL, f"no frame is of kind {kind}")

    def _receive_data(self, frame: bytes, now: float) -> list[Event]:
        transport = self._transport
        if transport is None:
            raise _Fault(Reason.NO_SESSION, "data without a session")
        if len(frame) < HEADER_BYTES:
            raise _Fault(Reason.PROTOCOL, "a data frame is too short")
        header = frame[:HEADER_BYTES]
        kind, nonce = _HEADER.unpack(header)
        receiving = transport.receiving
        if nonce != receiving.nonce:
            raise _Fault(Reason.NO_SESSION, f"frame {nonce} came where {receiving.nonce} was due")
        plaintext = transport.decrypt(frame[HEADER_BYTES:], header)
        if kind == KIND_REKEY:
            receiving.rekey()
            self._received = 0
        else:
            self._received += 1
            if self._received > 2 * REKEY_FRAMES:
                raise _Fault(Reason.PROTOCOL, "the peer does not rekey")
        if not self._established:
            if plaintext:
                raise _Fault(Reason.PROTOCOL, "the first data frame is not empty")
            return self._confirmed(now)
        return [Data(plaintext)] if plaintext else []

    def _receive_hello(self, frame: bytes) -> list[Event]:
        raise _Fault(Reason.PROTOCOL, "a hello is out of place here")

    @abc.abstractmethod
    def _receive_handshake(self, message: bytes, now: float) -> list[Event]:
        """The peer's next handshake message."""

    @abc.abstractmethod
    def _confirmed(self, now: float) -> list[Event]:
        """The peer has shown that it holds the keys."""

    def _read(self, message: bytes) -> HandshakeState:
        """Read a handshake message of the peer; there must be nothing in it but the handshake."""
        handshake = self._handshake
        if handshake is None or handshake.is_finished:
            raise _Fault(Reason.NO_SESSION, "a handshake message without a handshake")
        if handshake.read_message(message):
            raise _Fault(Reason.PROTOCOL, "a handshake message has a payload")
        return handshake

    def _established_event(self) -> Established:
        self._established = True
        remote_static = self.remote_static
        assert remote_static is not None  # both patterns authenticate both sides
        return Established(remote_static, self._invite_id)

    def _seal(self, plaintext: bytes, now: float) -> bytes:
        transport = self._transport
        assert transport is not None
        sending = transport.sending
        self._sent += 1
        rekey = self._sent >= REKEY_FRAMES or now >= self._rekey_at
        header = _HEADER.pack(KIND_REKEY if rekey else KIND_DATA, sending.nonce)
        frame = header + transport.encrypt(plaintext, header)
        if rekey:
            sending.rekey()
            self._sent = 0
            self._rekey_at = now + REKEY_S
        return frame

    def _lose(self, reason: Reason, detail: str) -> list[Event]:
        return [NeedSend(self.reset(reason)), Lost(reason, detail)]


class Initiator(Link):
    """The connecting side.  `start()` once, then feed it what comes."""

    def __init__(
        self,
        *,
        static: KeyPair,
        responder_public: bytes,
        shard: str,
        token_bytes: Callable[[int], bytes],
        now: float,
        invite: Invite | None = None,
    ) -> None:
        """Prepare a handshake: IK with a key that the broker knows, XXpsk3 with an invite.

        Args:
            static: Our Noise key pair.
            responder_public: The broker's static key, 32 bytes, pinned: with an invite too.
            shard: The shard that is meant; another one's broker refuses.
            token_bytes: For the ephemeral key.
            now: Trio's clock, seconds.

        Raises:
            LocalProtocolError: A key has not 32 bytes, or a name is too long or not ASCII.
        """
        super().__init__(now=now)
        self._pinned = responder_public
        pattern = _IK if invite is None else _XX_PSK3
        self._hello = _encode_hello(pattern, shard, "" if invite is None else invite.id)
        try:
            self._handshake = HandshakeState(
                _PROTOCOLS[pattern],
                initiator=True,
                token_bytes=token_bytes,
                prologue=self._hello,
                s=static,
                rs=responder_public if invite is None else None,
                psks=() if invite is None else (invite.secret,),
            )
        except NoiseError as exc:
            raise LocalProtocolError(f"no handshake can be made with these keys: {exc}") from exc

    def start(self) -> list[NeedSend]:
        """The hello and the first handshake message.

        Raises:
            LocalProtocolError: The responder's key is no key, or the link was started before.
        """
        assert self._handshake is not None
        try:
            first = self._handshake.write_message()
        except NoiseError as exc:
            raise LocalProtocolError(f"the link cannot be started: {exc}") from exc
        return [NeedSend(self._hello), NeedSend(_handshake_frame(first))]

    def _receive_handshake(self, message: bytes, now: float) -> list[Event]:
        handshake = self._read(message)
        if handshake.remote_static != self._pinned:
            raise _Fault(Reason.REFUSED, "the broker has another key than the one expected")
        events: list[Event] = []
        if not handshake.is_finished:
            events.append(NeedSend(_handshake_frame(handshake.write_message())))
        self._transport = TransportState(handshake)
        events.append(NeedSend(self._seal(b"", now)))
        return events

    def _confirmed(self, now: float) -> list[Event]:
        return [self._established_event()]


class Responder(Link):
    """The listening side of one connection."""

    def __init__(
        self,
        *,
        static: KeyPair,
        shard: str,
        admit: Callable[[bytes], bool],
        psk_for: Callable[[str], bytes | None],
        token_bytes: Callable[[int], bytes],
        now: float,
    ) -> None:
        """Wait for a hello.

        Args:
            static: The broker's Noise key pair.
            shard: The name that a hello must have.
            admit: A static key of 32 bytes -> may it have a link?  Asked before the handshake is answered;
                the first message may be a replay, so this decides nothing else.
            psk_for: An invite's id -> its secret of 32 bytes, or None where it is unknown, used or expired.
            token_bytes: For the ephemeral key.
            now: Trio's clock, seconds.
        """
        super().__init__(now=now)
        self._static = static
        self._shard = shard
        self._admit = admit
        self._psk_for = psk_for
        self._token_bytes = token_bytes

    def _receive_hello(self, frame: bytes) -> list[Event]:
        if self._handshake is not None:
            raise _Fault(Reason.PROTOCOL, "a second hello")
        pattern, shard, invite_id = _decode_hello(frame)
        if shard != self._shard:
            raise _Fault(Reason.OTHER_SHARD, "the hello names another shard")
        psks: tuple[bytes, ...] = ()
        if pattern == _XX_PSK3:
            psk = self._psk_for(invite_id)
            if psk is None:
                raise _Fault(Reason.REFUSED, "the invite is unknown, used or expired")
            psks = (psk,)
            self._invite_id = invite_id
        self._handshake = HandshakeState(
            _PROTOCOLS[pattern],
            initiator=False,
            token_bytes=self._token_bytes,
            prologue=frame,
            s=self._static,
            psks=psks,
        )
        return []

    def _receive_handshake(self, message: bytes, now: float) -> list[Event]:
        handshake = self._read(message)
        events: list[Event] = []
        if not handshake.is_finished:
            known = handshake.remote_static
            if known is not None and not self._admit(known):
                raise _Fault(Reason.REFUSED, "the key is unknown, suspended or revoked")
            events.append(NeedSend(_handshake_frame(handshake.write_message())))
        if handshake.is_finished:
            self._transport = TransportState(handshake)
        return events

    def _confirmed(self, now: float) -> list[Event]:
        established = self._established_event()
        return [NeedSend(self._seal(b"", now)), established]


def _encode_hello(pattern: int, shard: str, invite_id: str = "") -> bytes:
    """The hello frame.

    Raises:
        LocalProtocolError: A name is too long or not ASCII.
    """
    for name in (shard, invite_id):
        if not name.isascii() or len(name) > NAME_BYTES_MAX:
            raise LocalProtocolError(
                f"a shard's name and an invite's id have at most {NAME_BYTES_MAX} ASCII characters"
            )
    names = b"".join(bytes((len(name),)) + name.encode("ascii") for name in (shard, invite_id))
    return _HELLO.pack(KIND_HELLO, MAGIC, VERSION, pattern, ROLE_CLIENT) + names


def _decode_hello(frame: bytes) -> tuple[int, str, str]:
    """(pattern, shard, invite id) of a hello frame; every byte of it must make sense."""
    if len(frame) < _HELLO.size + 2:
        raise _Fault(Reason.PROTOCOL, "the hello is too short")
    _, magic, version, pattern, role = _HELLO.unpack_from(frame)
    if magic != MAGIC or version != VERSION:
        raise _Fault(Reason.PROTOCOL, f"not version {VERSION} of this protocol")
    if pattern not in _PROTOCOLS or role != ROLE_CLIENT:
        raise _Fault(Reason.PROTOCOL, "the hello asks for a pattern or role that is not there")
    names: list[str] = []
    place = _HELLO.size
    for _ in range(2):
        size = frame[place] if place < len(frame) else NAME_BYTES_MAX + 1
        name = frame[place + 1 : place + 1 + size]
        if size > NAME_BYTES_MAX or len(name) != size or not name.isascii():
            raise _Fault(Reason.PROTOCOL, "a name in the hello is malformed")
        names.append(name.decode("ascii"))
        place += 1 + size
    if place != len(frame) or (pattern == _XX_PSK3) != bool(names[1]):
        raise _Fault(Reason.PROTOCOL, "the hello is malformed")
    return pattern, names[0], names[1]


class _Fault(Exception):
    """Ends the link with a reason; never leaves this module."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _handshake_frame(message: bytes) -> bytes:
    return bytes((KIND_HANDSHAKE,)) + message


def _reason_of(frame: bytes) -> Reason:
    try:
        return Reason(frame[1]) if len(frame) == 2 else Reason.PROTOCOL
    except ValueError:
        return Reason.PROTOCOL


_IK, _XX_PSK3 = 1, 2
_PROTOCOLS: dict[int, Protocol] = {
    _IK: protocol("Noise_IK_25519_ChaChaPoly_SHA256"),
    _XX_PSK3: protocol("Noise_XXpsk3_25519_ChaChaPoly_SHA256"),
}
