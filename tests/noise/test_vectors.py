"""Every published vector that our primitives allow, and the command that checks them."""

import json
from pathlib import Path

import pytest

from noise.__main__ import Mismatch, check, load, main
from noise.state import protocol

VECTORS = Path(__file__).parent.parent / "vectors" / "noise"
FILES = {"cacophony.txt": (240, 250), "snow.txt": (216, 0), "snow-extended.txt": (0, 108)}


@pytest.mark.parametrize("name", FILES)
def test_all_25519_vectors_hold(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    passed, skipped = FILES[name]
    assert main([str(VECTORS / name)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{passed} passed, 0 failed, {skipped} skipped"


def test_what_is_skipped_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(VECTORS / name) for name in FILES])
    out = capsys.readouterr().out
    assert "skipped 250: not shipped: 448" in out
    assert "skipped 108: not shipped: P256, XChaChaPoly" in out
    assert out.endswith("456 passed, 0 failed, 358 skipped\n")


def test_one_wrong_bit_in_a_vector_fails_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, vector = next(item for item in load(VECTORS / "snow.txt") if item[0].startswith("Noise_XX_"))
    for index in range(len(vector["messages"])):
        changed = json.loads(json.dumps(vector))
        message = changed["messages"][index]
        message["ciphertext"] = f"{int(message['ciphertext'][0], 16) ^ 1:x}" + message["ciphertext"][1:]
        with pytest.raises(Mismatch):
            check(protocol(name), changed)
    path = tmp_path / "changed.txt"
    path.write_text(json.dumps({"vectors": [vector, changed]}))
    assert main([str(path)]) == 1
    assert "1 passed, 1 failed, 0 skipped" in capsys.readouterr().out


def test_a_vector_without_a_key_it_needs_fails_and_does_not_crash() -> None:
    name, vector = next(item for item in load(VECTORS / "snow.txt") if item[0].startswith("Noise_XX_"))
    for key in ("messages", "init_ephemeral"):
        with pytest.raises(Mismatch):
            check(protocol(name), {k: v for k, v in vector.items() if k != key})


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"vectors":[1]}', '{"vectors":[{}]}', "\x00"])
def test_what_is_no_vector_file_is_said_and_exits_with_2(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.txt"
    path.write_text(text)
    assert main([str(path)]) == 2
    assert "not a vector file" in capsys.readouterr().err


def test_no_argument_is_a_usage_error() -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
