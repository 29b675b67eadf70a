"""`python -m noise FILE…`: check vector files in the cacophony format, as cacophony and snow publish them.

The last line is `N passed, N failed, N skipped`; skipped are protocols with a primitive that is not shipped,
each named above it.  Exit status: 0, 1 when a vector failed, 2 when a file cannot be read.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from noise.errors import NoiseError, PatternError
from noise.state import HandshakeState, Protocol, protocol
from noise.suite import KeyPair
from noise.transport import TransportState


class Mismatch(Exception):
    """What this package computes is not what the vector says."""


def main(arguments: Sequence[str]) -> int:
    """Check the files and print what came out; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m noise FILE…\n\nChecks Noise test vectors in the cacophony format.")
        return 0 if arguments else 2
    passed = failed = 0
    skipped: Counter[str] = Counter()
    for argument in arguments:
        try:
            vectors = list(load(Path(argument)))
        except (OSError, ValueError, KeyError, TypeError) as exc:
            print(f"{argument}: not a vector file: {exc}", file=sys.stderr)
            return 2
        for number, (name, vector) in enumerate(vectors):
            try:
                known = protocol(name)
            except PatternError as exc:
                skipped[str(exc)] += 1
                continue
            try:
                check(known, vector)
            except (Mismatch, NoiseError) as exc:
                failed += 1
                print(f"{argument}: vector {number} {name}: {exc}")
            else:
                passed += 1
    for why, count in sorted(skipped.items()):
        print(f"skipped {count}: {why}")
    print(f"{passed} passed, {failed} failed, {skipped.total()} skipped")
    return 1 if failed else 0


def load(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (protocol name, vector) of a file; raises OSError, ValueError, KeyError or TypeError."""
    for vector in json.loads(path.read_text("utf-8"))["vectors"]:
        yield str(vector["protocol_name"]), vector


def check(known: Protocol, vector: Mapping[str, Any]) -> None:
    """Run both sides of one vector against each other and against its bytes.

    Raises:
        Mismatch: A message, payload or handshake hash differs, or the vector's own fields make no sense.
        NoiseError: One side refused what the other wrote.
    """
    try:
        initiator, responder = (_side(known, vector, side) for side in ("init", "resp"))
        messages = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in vector["messages"]]
        expected_hash = bytes.fromhex(vector.get("handshake_hash", ""))
    except (KeyError, TypeError, ValueError) as exc:
        raise Mismatch(f"malformed vector: {exc!r}") from exc
    steps = len(known.pattern.messages)
    for index, (payload, ciphertext) in enumerate(messages[:steps]):
        writer, reader = (initiator, responder) if index % 2 == 0 else (responder, initiator)
        _compare(f"message {index}", writer.write_message(payload), ciphertext)
        _compare(f"payload {index}", reader.read_message(ciphertext), payload)
    if expected_hash:
        _compare("handshake hash", initiator.handshake_hash, expected_hash)
    _compare("responder's handshake hash", responder.handshake_hash, initiator.handshake_hash)
    ends = TransportState(initiator), TransportState(responder)
    for index, (payload, ciphertext) in enumerate(messages[steps:], start=steps):
        from_initiator = known.pattern.is_one_way or index % 2 == 0
        sender, receiver = ends if from_initiator else reversed(ends)
        _compare(f"message {index}", sender.encrypt(payload), ciphertext)
        _compare(f"payload {index}", receiver.decrypt(ciphertext), payload)


def _side(known: Protocol, vector: Mapping[str, Any], side: str) -> HandshakeState:
    static, ephemeral, remote = (
        bytes.fromhex(vector[key]) if vector.get(key) else None
        for key in (f"{side}_static", f"{side}_ephemeral", f"{side}_remote_static")
    )
    return HandshakeState(
        known,
        initiator=side == "init",
        token_bytes=lambda n: ephemeral or bytes(n),
        prologue=bytes.fromhex(vector.get(f"{side}_prologue", "")),
        s=None if static is None else KeyPair.from_private(static),
        rs=remote,
        psks=[bytes.fromhex(psk) for psk in vector.get(f"{side}_psks", ())],
    )


def _compare(what: str, ours: bytes, expected: bytes) -> None:
    if ours != expected:
        raise Mismatch(f"{what} is {ours.hex()}, expected {expected.hex()}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
