"""Pattern tables against the paper's own rules, and names that are refused."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noise import PATTERNS, PatternError, protocol
from noise.pattern import pattern


def test_all_fundamental_patterns_are_there() -> None:
    one_way = {"N", "K", "X"}
    interactive = {a + b for a in "NXKI" for b in "NKX"}
    deferred = (
        "NK1 NX1 X1N X1K XK1 X1K1 X1X XX1 X1X1 K1N K1K KK1 K1K1 K1X KX1 K1X1 I1N I1K IK1 I1K1 I1X IX1 I1X1"
    )
    assert set(PATTERNS) == one_way | interactive | set(deferred.split())


@pytest.mark.parametrize("name", PATTERNS)
def test_the_validity_rules_of_section_7_3_hold(name: str) -> None:
    shape = PATTERNS[name]
    known = {"is": shape.initiator_static_known, "rs": shape.responder_static_known}
    done: set[str] = set()
    for index, message in enumerate(shape.messages):
        side = "i" if index % 2 == 0 else "r"
        for token in message:
            if token in ("e", "s"):
                key = side + token
                assert not known.get(key), f"{token} is sent twice"  # rule 2
                known[key] = True
            else:
                assert known.get("i" + token[0]) and known.get("r" + token[1])  # rule 1
                assert token not in done  # rule 3
                done.add(token)
        if "ss" in done:
            assert done & {"es", "ee"}  # rule 4: never a key from static keys alone


def test_modifiers_stand_where_the_paper_puts_them() -> None:
    assert pattern("XXpsk0").messages[0] == ("psk", "e")
    assert pattern("XXpsk1").messages[0] == ("e", "psk")
    assert pattern("XXpsk3").messages[2] == ("s", "se", "psk")
    assert pattern("NNpsk0+psk2").messages == (("psk", "e"), ("e", "ee", "psk"))
    assert pattern("NNpsk0+psk2").psks == 2


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Noise",
        "Noise_XX_25519_ChaChaPoly",
        "noise_XX_25519_ChaChaPoly_SHA256",
        "Noise_XX_25519_ChaChaPoly_SHA256_",
        "Noise_QQ_25519_ChaChaPoly_SHA256",
        "Noise_XXpsk4_25519_ChaChaPoly_SHA256",
        "Noise_XXpsk0+psk0_25519_ChaChaPoly_SHA256",
        "Noise_XXpsk_25519_ChaChaPoly_SHA256",
        "Noise_XXfallback_25519_ChaChaPoly_SHA256",
        "Noise_XXpsk0+_25519_ChaChaPoly_SHA256",
        "Noise_XX_448_ChaChaPoly_SHA256",
        "Noise_XX_25519_ChaCha_SHA256",
        "Noise_XX_25519_ChaChaPoly_SHA3",
        "Noise_XXpsk0_25519_ChaChaPoly_SHA256" + "x" * 300,
    ],
)
def test_a_name_that_is_not_shipped_is_refused(name: str) -> None:
    with pytest.raises(PatternError):
        protocol(name)


NAMES = st.from_regex(r"Noise_[A-Z1]{1,4}(psk[0-9]\+?){0,4}_25519_AESGCM_SHA512", fullmatch=True)


@given(st.text(max_size=60) | NAMES)
def test_any_text_is_a_protocol_or_a_pattern_error(name: str) -> None:
    with contextlib.suppress(PatternError):
        assert protocol(name).name == name
