"""SASL clients against the RFCs' own examples, and against servers that lie."""

from __future__ import annotations

import base64
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridged.sasl import MECHANISMS, SaslError, client, saslprep
from bridged.secret import Secret

PENCIL = Secret(b"pencil")
# RFC 5802, section 5, and RFC 7677, section 3.
EXAMPLES = {
    "SCRAM-SHA-1": (
        "fyko+d2lbbFgONRv9qkxdawL",
        b"n,,n=user,r=fyko+d2lbbFgONRv9qkxdawL",
        b"r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,s=QSXCR+Q6sek8bf92,i=4096",
        b"c=biws,r=fyko+d2lbbFgONRv9qkxdawL3rfcNHYJY1ZVvWVs7j,p=v0X8v3Bz2T0CJGbJQyF0X+HI4Ts=",
        b"v=rmF9pqV8S7suAoZWja4dJRkFsKQ=",
    ),
    "SCRAM-SHA-256": (
        "rOprNGfwEbeRWgbNEkqO",
        b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO",
        b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096",
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=",
    ),
}


@pytest.mark.parametrize("mechanism", EXAMPLES)
def test_the_examples_of_the_rfcs(mechanism: str) -> None:
    nonce, first, challenge, final, proof = EXAMPLES[mechanism]
    scram = client(mechanism, "user", PENCIL, base64.b64decode(nonce))
    assert scram.respond(b"") == first
    assert scram.respond(challenge) == final
    assert not scram.is_done
    assert scram.respond(proof) == b""
    assert scram.is_done
    with pytest.raises(SaslError):
        scram.respond(b"more")


@pytest.mark.parametrize(
    ("challenge", "says"),
    [
        (b"", "not SCRAM's"),
        (b"\xff", "UTF-8"),
        (b"r=other,s=QSXCR+Q6sek8bf92,i=4096", "nonce"),
        (b"r=fyko+d2lbbFgONRv9qkxdawL,s=QSXCR+Q6sek8bf92,i=4096", "nonce"),
        (b"r=fyko+d2lbbFgONRv9qkxdawL3,s=QSXCR+Q6sek8bf92,i=1", "iterations"),
        (b"r=fyko+d2lbbFgONRv9qkxdawL3,s=QSXCR+Q6sek8bf92,i=999999999", "iterations"),
        (b"r=fyko+d2lbbFgONRv9qkxdawL3,s=QSXCR+Q6sek8bf92,i=0", "not SCRAM's"),
        (b"r=fyko+d2lbbFgONRv9qkxdawL3,s=Q,i=4096", "base64"),
        (b"m=ext,r=fyko+d2lbbFgONRv9qkxdawL3,s=QSXCR+Q6sek8bf92,i=4096", "not SCRAM's"),
        (b"e=other-error", "not SCRAM's"),
    ],
)
def test_a_lying_first_message_is_refused(challenge: bytes, says: str) -> None:
    scram = client("SCRAM-SHA-1", "user", PENCIL, base64.b64decode("fyko+d2lbbFgONRv9qkxdawL"))
    scram.respond(b"")
    with pytest.raises(SaslError, match=says):
        scram.respond(challenge)


@pytest.mark.parametrize(
    ("proof", "says"),
    [
        (b"v=" + base64.b64encode(bytes(20)), "impostor"),
        (b"v=", "impostor"),
        (b"v=!", "base64"),
        (b"", "impostor"),
        (b"e=invalid-proof", "invalid-proof"),
    ],
)
def test_a_server_that_cannot_prove_itself_is_an_impostor(proof: bytes, says: str) -> None:
    nonce, _, challenge, _, _ = EXAMPLES["SCRAM-SHA-1"]
    scram = client("SCRAM-SHA-1", "user", PENCIL, base64.b64decode(nonce))
    scram.respond(b"")
    scram.respond(challenge)
    with pytest.raises(SaslError, match=says):
        scram.respond(proof)
    assert not scram.is_done


def test_names_are_escaped() -> None:
    scram = client("SCRAM-SHA-256", "a=b,c", PENCIL, b"x" * 18)
    assert scram.respond(b"").startswith(b"n,,n=a=3Db=2Cc,r=")
    with pytest.raises(SaslError):
        client("SCRAM-SHA-256", "a", PENCIL, b"x" * 18).respond(b"hello")


def test_plain_and_external_say_one_thing() -> None:
    plain = client("PLAIN", "kåre", PENCIL, b"")
    assert plain.respond(b"") == b"\0k\xc3\xa5re\0pencil"
    assert plain.is_done
    external = client("EXTERNAL", "", Secret(b""), b"")
    assert external.respond(b"") == b"" and external.is_done
    for exchange in (
        plain,
        external,
        client("PLAIN", "a\0b", PENCIL, b""),
        client("PLAIN", "\ud800", PENCIL, b""),
    ):
        with pytest.raises(SaslError):
            exchange.respond(b"")
    with pytest.raises(SaslError, match="challenges"):
        client("EXTERNAL", "", Secret(b""), b"").respond(b"x")


def test_an_unknown_mechanism_is_refused() -> None:
    assert set(EXAMPLES) < set(MECHANISMS)
    with pytest.raises(SaslError, match="NTLM"):
        client("NTLM", "a", PENCIL, b"")


# RFC 4013, section 3.
@pytest.mark.parametrize(
    ("raw", "prepared"),
    [
        ("I\u00adX", "IX"),
        ("user", "user"),
        ("USER", "USER"),
        ("\u00aa", "a"),
        ("\u2168", "IX"),
        ("a\u00a0b", "a b"),
        ("", ""),
    ],
)
def test_saslprep_examples(raw: str, prepared: str) -> None:
    assert saslprep(raw) == prepared


@pytest.mark.parametrize("raw", ["\u0007", "\u0627\u0031", "a\n", "\ue000", "😀", "\ud800", "\u0627a\u0627"])
def test_saslprep_forbids(raw: str) -> None:
    with pytest.raises(SaslError):
        saslprep(raw)


@given(st.text())
def test_saslprep_is_stable_or_refuses(text: str) -> None:
    with suppress(SaslError):
        once = saslprep(text)
        assert saslprep(once) == once


@given(st.sampled_from(MECHANISMS), st.lists(st.binary(max_size=60), max_size=3))
def test_any_server_gives_an_answer_or_a_sasl_error(mechanism: str, challenges: list[bytes]) -> None:
    exchange = client(mechanism, "user", PENCIL, b"n" * 18)
    with suppress(SaslError):
        for challenge in [b"", *challenges]:
            exchange.respond(challenge)
    assert not exchange.is_done or not mechanism.startswith("SCRAM")
