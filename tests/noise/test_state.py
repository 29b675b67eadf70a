"""Handshakes and sessions: what must work, and that nothing a peer sends raises anything but a NoiseError."""

import hashlib
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noise import (
    MESSAGE_BYTES_MAX,
    PATTERNS,
    PLAINTEXT_BYTES_MAX,
    CipherState,
    DecryptError,
    HandshakeError,
    HandshakeState,
    KeyPair,
    NoiseError,
    NonceExhausted,
    PatternError,
    TransportState,
)
from noise.suite import CIPHERS

SUITE = "25519_ChaChaPoly_BLAKE2s"
ALICE, BOB = (KeyPair.from_private(bytes([n]) * 32) for n in (1, 2))
PSK = b"p" * 32


class Tokens:
    """Bytes that look random and are the same in every run."""

    def __init__(self, seed: str) -> None:
        self._seed, self._count = seed, count()

    def __call__(self, n: int) -> bytes:
        return hashlib.shake_256(f"{self._seed}{next(self._count)}".encode()).digest(n)


def pair(pattern: str, suite: str = SUITE, **changes: bytes) -> tuple[HandshakeState, HandshakeState]:
    base = PATTERNS[pattern.partition("psk")[0]]
    psks = pattern.count("psk") * [PSK]
    name = f"Noise_{pattern}_{suite}"
    alice = HandshakeState(
        name,
        initiator=True,
        token_bytes=Tokens("a"),
        prologue=changes.get("alice_prologue", b"x"),
        s=ALICE,
        rs=BOB.public if base.responder_static_known else None,
        psks=psks,
    )
    bob = HandshakeState(
        name,
        initiator=False,
        token_bytes=Tokens("b"),
        prologue=b"x",
        s=BOB,
        rs=ALICE.public if base.initiator_static_known else None,
        psks=[changes["bob_psk"]] * len(psks) if "bob_psk" in changes else psks,
    )
    return alice, bob


def shake_hands(alice: HandshakeState, bob: HandshakeState) -> tuple[TransportState, TransportState]:
    writer, reader = alice, bob
    while not alice.is_finished:
        assert writer.is_our_turn and not reader.is_our_turn
        assert reader.read_message(writer.write_message(b"hello")) == b"hello"
        writer, reader = reader, writer
    return TransportState(alice), TransportState(bob)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_both_sides_agree_and_know_each_other(pattern: str) -> None:
    alice, bob = shake_hands(*pair(pattern))
    assert alice.handshake_hash == bob.handshake_hash
    shape = PATTERNS[pattern]
    if shape.sends_static(initiator=True):
        assert bob.remote_static == ALICE.public
    if shape.sends_static(initiator=False):
        assert alice.remote_static == BOB.public
    assert bob.decrypt(alice.encrypt(b"to bob", b"ad"), b"ad") == b"to bob"
    if shape.is_one_way:
        with pytest.raises(HandshakeError):
            bob.encrypt(b"")
        with pytest.raises(HandshakeError):
            alice.decrypt(bytes(16))
    else:
        assert alice.decrypt(bob.encrypt(b"to alice")) == b"to alice"


def test_rekey_goes_on_with_the_same_nonce_under_another_key() -> None:
    alice, bob = shake_hands(*pair("NN"))
    before = alice.encrypt(b"")
    bob.decrypt(before)
    alice.sending.rekey()
    assert alice.sending.nonce == 1
    after = alice.encrypt(b"one")
    with pytest.raises(DecryptError):
        bob.decrypt(after)
    bob.receiving.rekey()
    assert bob.decrypt(after) == b"one"


@pytest.mark.parametrize("cipher", CIPHERS)
def test_a_wrong_tag_leaves_the_nonce_where_it_was(cipher: str) -> None:
    alice, bob = shake_hands(*pair("NN", f"25519_{cipher}_SHA256"))
    message = alice.encrypt(b"text")
    with pytest.raises(DecryptError):
        bob.decrypt(message[:-1] + bytes([message[-1] ^ 1]))
    assert bob.receiving.nonce == 0
    assert bob.decrypt(message) == b"text"
    with pytest.raises(DecryptError):
        bob.decrypt(message)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_every_single_byte_flip_of_a_transport_message_is_refused(cipher: str) -> None:
    alice, bob = shake_hands(*pair("KK", f"25519_{cipher}_BLAKE2b"))
    message = alice.encrypt(b"a text of some length")
    for place in range(len(message)):
        changed = bytearray(message)
        changed[place] ^= 1 << place % 8
        with pytest.raises(DecryptError):
            bob.decrypt(bytes(changed))
    assert bob.decrypt(message)


@pytest.mark.parametrize("pattern", ["XX", "IK", "KK", "NNpsk0", "X1K1", "X"])
def test_every_single_byte_flip_of_a_handshake_fails_the_handshake(pattern: str) -> None:
    steps = len(PATTERNS[pattern.partition("psk")[0]].messages)
    for step in range(steps):
        for place in range(200):
            alice, bob = pair(pattern)
            writer, reader = alice, bob
            for _ in range(step):
                reader.read_message(writer.write_message())
                writer, reader = reader, writer
            changed = bytearray(writer.write_message(b"payload"))
            if place >= len(changed):
                break
            changed[place] ^= 0x10
            try:
                reader.read_message(bytes(changed))
            except NoiseError:
                with pytest.raises(HandshakeError):
                    reader.read_message(bytes(changed))
            else:  # a message in clear: the difference shows at the next tag
                assert alice.handshake_hash != bob.handshake_hash


def test_another_prologue_is_no_session() -> None:
    alice, bob = pair("NK", alice_prologue=b"y")
    with pytest.raises(DecryptError):
        bob.read_message(alice.write_message())


def test_another_psk_is_no_session() -> None:
    alice, bob = pair("NNpsk2", bob_psk=b"q" * 32)
    bob.read_message(alice.write_message())
    with pytest.raises(DecryptError):
        alice.read_message(bob.write_message())


def test_a_point_of_small_order_is_refused() -> None:
    _, bob = pair("NN")
    bob.read_message(bytes(32))
    with pytest.raises(HandshakeError):
        bob.write_message()


def test_out_of_turn_and_after_the_end_is_refused() -> None:
    alice, bob = pair("NN")
    with pytest.raises(HandshakeError):
        bob.write_message()
    with pytest.raises(HandshakeError):
        TransportState(alice)
    shake_hands(alice, bob)
    with pytest.raises(HandshakeError):
        alice.write_message()


def test_the_sizes_of_the_paper_are_kept() -> None:
    alice, bob = pair("NN")
    with pytest.raises(HandshakeError):
        alice.write_message(bytes(MESSAGE_BYTES_MAX))
    sender, receiver = shake_hands(*pair("NN"))
    assert receiver.decrypt(sender.encrypt(bytes(PLAINTEXT_BYTES_MAX))) == bytes(PLAINTEXT_BYTES_MAX)
    with pytest.raises(HandshakeError):
        sender.encrypt(bytes(PLAINTEXT_BYTES_MAX + 1))
    for size in (0, 15, MESSAGE_BYTES_MAX + 1):
        with pytest.raises(DecryptError):
            receiver.decrypt(bytes(size))
    with pytest.raises(HandshakeError):
        bob.read_message(bytes(MESSAGE_BYTES_MAX + 1))


def test_the_last_nonce_is_never_used() -> None:
    cipher = CipherState(CIPHERS["ChaChaPoly"], bytes(32))
    cipher.set_nonce(2**64 - 2)
    cipher.encrypt_with_ad(b"", b"last")
    for use in (cipher.encrypt_with_ad, cipher.decrypt_with_ad):
        with pytest.raises(NonceExhausted):
            use(b"", bytes(16))
    with pytest.raises(NonceExhausted):
        cipher.set_nonce(2**64)


def test_keys_that_do_not_fit_the_pattern_are_refused_at_the_start() -> None:
    def make(pattern: str, **keys: object) -> None:
        HandshakeState(f"Noise_{pattern}_{SUITE}", initiator=True, token_bytes=Tokens("a"), **keys)  # type: ignore[arg-type]

    for pattern, keys in [
        ("XX", {}),
        ("IK", {"s": ALICE}),
        ("NK", {"rs": b"short"}),
        ("NN", {"rs": BOB.public}),
        ("NNpsk0", {}),
        ("NNpsk0", {"psks": [b"short"]}),
        ("NN", {"psks": [PSK]}),
    ]:
        with pytest.raises(PatternError):
            make(pattern, **keys)
    with pytest.raises(PatternError):
        KeyPair.from_private(b"short")


def test_a_private_key_is_not_shown() -> None:
    assert ALICE.private.hex() not in repr(ALICE)
    assert repr(ALICE.private) not in repr(ALICE)


@settings(deadline=None)
@given(pattern=st.sampled_from([*PATTERNS, "XXpsk3", "IKpsk1", "NNpsk0"]), message=st.binary(max_size=200))
def test_any_handshake_bytes_raise_a_noise_error_or_nothing(pattern: str, message: bytes) -> None:
    alice, bob = pair(pattern)
    try:
        bob.read_message(message)
        if bob.is_our_turn:
            alice.write_message()
            alice.read_message(bob.write_message())
    except NoiseError:
        pass


@settings(deadline=None)
@given(step=st.integers(0, 2), message=st.binary(max_size=200), tail=st.booleans())
def test_any_bytes_at_any_step_raise_a_noise_error(step: int, message: bytes, tail: bool) -> None:
    writer, reader = pair("XX")
    for _ in range(step):
        reader.read_message(writer.write_message())
        writer, reader = reader, writer
    honest = writer.write_message()
    try:
        reader.read_message(honest + message if tail else message)
    except NoiseError:
        pass
    else:  # only a message with nothing encrypted in it can be anything else than what was sent
        assert step == 0 or (tail and not message)


@given(message=st.binary(max_size=100), ad=st.binary(max_size=20))
def test_any_transport_bytes_are_refused(message: bytes, ad: bytes) -> None:
    _, bob = shake_hands(*pair("NN"))
    with pytest.raises(DecryptError):
        bob.decrypt(message, ad)
