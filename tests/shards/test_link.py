"""A Noise session over frames: who may have one, and what ends it."""

import hashlib
from collections.abc import Callable
from itertools import count
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise import PLAINTEXT_BYTES_MAX, HandshakeState, KeyPair
from shards import link as link_module
from shards.errors import LocalProtocolError
from shards.link import (
    FRAME_BYTES_MAX,
    REKEY_S,
    Data,
    Established,
    Event,
    Initiator,
    Invite,
    Link,
    Lost,
    NeedSend,
    Reason,
    Responder,
)

CLIENT, SERVER, STRANGER = (KeyPair.from_private(bytes([n]) * 32) for n in (1, 2, 3))
INVITE = Invite("invite-1", b"p" * 32)


def tokens(seed: str) -> Callable[[int], bytes]:
    numbers = count()
    return lambda n: hashlib.shake_256(f"{seed}{next(numbers)}".encode()).digest(n)


def initiator(
    invite: Invite | None = None,
    *,
    static: KeyPair = CLIENT,
    responder: bytes = SERVER.public,
    shard: str = "acme",
    seed: str = "c",
) -> Initiator:
    return Initiator(
        static=static,
        responder_public=responder,
        shard=shard,
        token_bytes=tokens(seed),
        now=0.0,
        invite=invite,
    )


def responder(*, static: KeyPair = SERVER, seed: str = "s") -> Responder:
    return Responder(
        static=static,
        shard="acme",
        admit=lambda key: key == CLIENT.public,
        psk_for={INVITE.id: INVITE.secret}.get,
        token_bytes=tokens(seed),
        now=0.0,
    )


def converse(client: Initiator, server: Responder) -> tuple[list[Event], list[Event]]:
    """Carry frames to and fro until nobody has any; returns what else happened on each side."""
    told: tuple[list[Event], list[Event]] = ([], [])
    pending = [(server, event.frame) for event in client.start()]
    while pending:
        side, frame = pending.pop(0)
        for event in side.receive_frame(frame, 1.0):
            if isinstance(event, NeedSend):
                pending.append((client if side is server else server, event.frame))
            else:
                told[side is server].append(event)
    return told


def established(invite: Invite | None = None) -> tuple[Initiator, Responder]:
    client, server = initiator(invite), responder()
    converse(client, server)
    assert client.is_established and server.is_established
    return client, server


def reason_of(events: list[Event]) -> Reason:
    assert isinstance(events[-1], Lost), events
    return events[-1].reason


def test_a_known_key_gets_a_link_and_both_sides_know_whose_it_is() -> None:
    client, server = initiator(), responder()
    at_client, at_server = converse(client, server)
    assert at_client == [Established(SERVER.public, None)]
    assert at_server == [Established(CLIENT.public, None)]
    assert client.handshake_hash == server.handshake_hash is not None


def test_an_invite_lets_an_unknown_key_in() -> None:
    client, server = initiator(INVITE, static=STRANGER), responder()
    at_client, at_server = converse(client, server)
    assert at_client == [Established(SERVER.public, None)]
    assert at_server == [Established(STRANGER.public, INVITE.id)]


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (initiator(static=STRANGER), Reason.REFUSED),
        (initiator(responder=STRANGER.public), Reason.REFUSED),
        (initiator(Invite("invite-2", INVITE.secret)), Reason.REFUSED),
        (initiator(Invite(INVITE.id, b"q" * 32)), Reason.REFUSED),
        (initiator(shard="beta"), Reason.OTHER_SHARD),
    ],
)
def test_who_has_no_right_to_a_link_is_told_and_never_established(client: Initiator, reason: Reason) -> None:
    server = responder()
    at_client, at_server = converse(client, server)
    assert reason_of(at_server) == reason
    assert at_client == [Lost(reason, "the peer reset the link", by_peer=True)]
    assert client.is_lost and server.is_lost
    assert server.receive_frame(b"\0", 1.0) == []


def test_an_enrolling_client_refuses_a_broker_with_another_key_than_the_pinned_one() -> None:
    client, server = initiator(INVITE, responder=STRANGER.public), responder()
    at_client, at_server = converse(client, server)
    assert reason_of(at_client) == Reason.REFUSED
    assert not any(isinstance(event, Established) for event in at_server)


def test_frames_arrive_as_they_were_sent_in_both_directions() -> None:
    client, server = established(INVITE)
    for size in (1, 100, PLAINTEXT_BYTES_MAX):
        for sender, receiver in ((client, server), (server, client)):
            frame = sender.seal(bytes(size), 2.0)
            assert len(frame) <= FRAME_BYTES_MAX
            assert receiver.receive_frame(frame, 2.0) == [Data(bytes(size))]


def test_nothing_can_be_sealed_before_the_link_stands_or_in_a_size_no_frame_has() -> None:
    client, server = initiator(), responder()
    for link in (client, server):
        with pytest.raises(LocalProtocolError):
            link.seal(b"x", 0.0)
    converse(client, server)
    for size in (0, PLAINTEXT_BYTES_MAX + 1):
        with pytest.raises(LocalProtocolError):
            client.seal(bytes(size), 0.0)
    client.reset(Reason.CLOSING)
    with pytest.raises(LocalProtocolError):
        client.seal(b"x", 0.0)


def test_a_gap_a_repeat_and_another_order_lose_the_session_and_are_answered_by_a_reset() -> None:
    for damage in (lambda f: f[1:], lambda f: [f[0], f[0]], lambda f: [f[1], f[0]]):
        client, server = established()
        frames = damage([client.seal(b"one", 1.0), client.seal(b"two", 1.0)])
        events = [event for frame in frames for event in server.receive_frame(frame, 1.0)]
        assert reason_of(events) == Reason.NO_SESSION
        reset = events[-2]
        assert isinstance(reset, NeedSend)
        assert client.receive_frame(reset.frame, 1.0) == [
            Lost(Reason.NO_SESSION, "the peer reset the link", by_peer=True)
        ]


def test_every_single_byte_flip_of_a_transport_frame_loses_the_session() -> None:
    client, server = established()
    frame = client.seal(b"a plaintext of some length", 1.0)
    for place in range(len(frame)):
        for bit in (0x01, 0x80):
            victim = snapshot_of(server)
            changed = frame[:place] + bytes([frame[place] ^ bit]) + frame[place + 1 :]
            events = victim.receive_frame(changed, 1.0)
            assert not any(isinstance(event, Data) for event in events)
            assert victim.is_lost
    assert server.receive_frame(frame, 1.0) == [Data(b"a plaintext of some length")]


def snapshot_of(server: Responder) -> Responder:
    """A responder in the same state: the same handshake with the same randomness."""
    _, twin = established()
    assert twin.handshake_hash == server.handshake_hash
    return twin


def test_every_single_byte_flip_of_the_handshake_makes_no_session() -> None:
    for invite in (None, INVITE):
        length = sum(len(event.frame) for event in initiator(invite).start())
        for place in range(length):
            client, server = initiator(invite), responder()
            frames = [event.frame for event in client.start()]
            joined = bytearray(b"".join(frames))
            joined[place] ^= 0x04
            cut = len(frames[0])
            said: list[Event] = []
            for frame in (bytes(joined[:cut]), bytes(joined[cut:])):
                said += server.receive_frame(frame, 1.0)
            for event in said:
                if isinstance(event, NeedSend):
                    client.receive_frame(event.frame, 1.0)
            assert not client.is_established and not server.is_established


def test_a_replayed_first_message_establishes_nothing() -> None:
    client, server = initiator(), responder()
    frames = [event.frame for event in client.start()]
    for frame in frames:
        server.receive_frame(frame, 1.0)
    replayed = responder(seed="another")
    told = [event for frame in frames for event in replayed.receive_frame(frame, 1.0)]
    assert [type(event) for event in told] == [NeedSend]
    assert not replayed.is_established
    assert replayed.is_overdue(5.1) and not replayed.is_overdue(5.0)


def test_a_handshake_with_a_payload_is_refused() -> None:
    client, server = initiator(), responder()
    hello = client.start()[0].frame
    handshake = HandshakeState(
        "Noise_IK_25519_ChaChaPoly_SHA256",
        initiator=True,
        token_bytes=tokens("p"),
        prologue=hello,
        s=CLIENT,
        rs=SERVER.public,
    )
    server.receive_frame(hello, 1.0)
    events = server.receive_frame(b"\x01" + handshake.write_message(b"do this"), 1.0)
    assert reason_of(events) == Reason.PROTOCOL


def test_a_broker_that_came_back_answers_an_old_session_with_a_reset() -> None:
    client, _ = established()
    events = responder().receive_frame(client.seal(b"x", 1.0), 1.0)
    assert [type(event) for event in events] == [NeedSend, Lost]
    assert reason_of(events) == Reason.NO_SESSION


def test_the_sender_rekeys_by_count_and_by_time_and_the_receiver_follows() -> None:
    with patch.object(link_module, "REKEY_FRAMES", 5):
        client, server = established()
        kinds = []
        for n in range(12):
            frame = client.seal(b"%d" % n, 1.0)
            kinds.append(frame[0])
            assert server.receive_frame(frame, 1.0) == [Data(b"%d" % n)]
        assert kinds == [2, 2, 2, 4, 2, 2, 2, 2, 4, 2, 2, 2]  # the empty first frame counts
    client, server = established()
    for now, kind in [(REKEY_S - 1, 2), (REKEY_S + 1, 4), (REKEY_S + 2, 2), (2 * REKEY_S + 2, 4)]:
        frame = server.seal(b"x", now)
        assert frame[0] == kind
        assert client.receive_frame(frame, now - 1000) == [Data(b"x")]  # the receiver's clock decides nothing


def test_a_peer_that_never_rekeys_loses_the_link() -> None:
    client, server = established()
    with patch.object(link_module, "REKEY_FRAMES", 10**9):
        frames = [client.seal(b"x", 1.0) for _ in range(12)]
    with patch.object(link_module, "REKEY_FRAMES", 5):
        events = [event for frame in frames for event in server.receive_frame(frame, 1.0)]
    assert events[:9] == [Data(b"x")] * 9
    assert reason_of(events) == Reason.PROTOCOL


def test_a_reset_is_never_answered_and_a_lost_link_is_silent() -> None:
    for frame in (b"\x03\x01", b"\x03", b"\x03\xff", b"\x03\x01\x01"):
        client, server = established()
        events = server.receive_frame(frame, 1.0)
        assert len(events) == 1 and reason_of(events) in Reason
        assert server.receive_frame(client.seal(b"x", 1.0), 1.0) == []


def test_a_second_hello_a_second_handshake_and_a_payload_in_the_first_frame_end_the_link() -> None:
    for frame in [event.frame for event in initiator().start()]:
        _, victim = established()
        assert isinstance(victim.receive_frame(frame, 1.0)[-1], Lost)
    with patch.object(Initiator, "_seal", lambda self, plaintext, now: Link._seal(self, b"early", now)):
        _, at_server = converse(initiator(), responder())
    assert reason_of(at_server) == Reason.PROTOCOL


def test_names_that_fit_no_hello_and_keys_that_are_none_are_our_own_bug() -> None:
    for make in (
        lambda: initiator(shard="x" * 65),
        lambda: initiator(shard="ö"),
        lambda: initiator(responder=b"short"),
        lambda: initiator(Invite("i", b"short")),
        lambda: initiator(responder=bytes(32)).start(),
    ):
        with pytest.raises(LocalProtocolError):
            make()


def test_no_secret_is_shown() -> None:
    assert "pppp" not in repr(INVITE)


@settings(deadline=None)
@given(frames=st.lists(st.binary(max_size=120), max_size=4), standing=st.booleans(), kind=st.integers(0, 5))
def test_any_frames_are_survived_and_nothing_comes_of_them(
    frames: list[bytes], standing: bool, kind: int
) -> None:
    for link in established() if standing else (initiator(), responder()):
        for frame in frames:
            for event in link.receive_frame(bytes([kind]) + frame, 1.0):
                assert isinstance(event, NeedSend | Lost)


def test_the_bytes_of_the_outer_frames_are_these() -> None:
    """Golden: whoever changes one of them breaks every client that is out there."""
    client, server = initiator(), responder()
    hello, first = (event.frame for event in client.start())
    assert hello == b"\x00SHRD\x01\x01\x01\x04acme\x00"
    invited = initiator(INVITE).start()[0].frame
    assert invited == b"\x00SHRD\x01\x02\x01\x04acme\x08invite-1"
    assert first[0] == 1 and len(first) == 1 + 32 + 48 + 16
    server.receive_frame(hello, 1.0)
    (second,) = server.receive_frame(first, 1.0)
    assert isinstance(second, NeedSend) and len(second.frame) == 1 + 32 + 16
    (confirm,) = client.receive_frame(second.frame, 1.0)
    assert isinstance(confirm, NeedSend)
    assert confirm.frame[:9] == b"\x02" + bytes(8) and len(confirm.frame) == 9 + 16
    (answer, _) = server.receive_frame(confirm.frame, 1.0)
    assert isinstance(answer, NeedSend) and answer.frame[:9] == b"\x02" + bytes(8)
    client.receive_frame(answer.frame, 1.0)
    assert client.seal(b"abc", 1.0)[:9] == b"\x02" + (1).to_bytes(8, "big")
    assert client.seal(b"abc", REKEY_S + 1)[:9] == b"\x04" + (2).to_bytes(8, "big")
    assert client.reset(Reason.CLOSING) == b"\x03\x06"
    digest = hashlib.sha256(hello + first + second.frame + confirm.frame + answer.frame).hexdigest()
    assert digest == "270c663e59af447bed97d74404acb8146549cb9760d7755ac12d76f989b6edd6"
