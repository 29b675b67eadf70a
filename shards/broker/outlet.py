"""From runs in the log to DELIVER frames of one subscription: whole where it gets the whole batch, cut where not."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from shards import merkle, wire
from shards.store import Run

if TYPE_CHECKING:
    from shards.broker.peer import Peer

DELIVER_OCTETS = 60_000
"""One Noise message holds a frame of so many bytes and the heads of its last run."""
_TREES = 128
_TREES_OCTETS = 8 << 20


class Cutter:
    """Takes single records out of batches; keeps the last trees, since a batch is cut for several members."""

    def __init__(self) -> None:
        self._trees: OrderedDict[int, tuple[wire.Batch, merkle.BatchSignature]] = OrderedDict()
        self._octets = 0

    def cut(self, run: Run, picks: list[tuple[int, int]]) -> bytes:
        """The run's records of `picks` (index, attempt) as they lie in DELIVER."""
        batch, tree = self.open(run)
        items = tuple(
            [
                wire.Item(index, attempt, batch.keys[index], batch.payloads[index], tree.proof(index).path)
                for index, attempt in picks
            ]
        )
        return wire.encode_cut(
            wire.Run(
                run.topic,
                run.principal,
                run.position,
                run.offset,
                run.at_ms,
                n=tree.n,
                root=tree.root,
                signature=tree.signature,
                items=items,
            )
        )

    def open(self, run: Run) -> tuple[wire.Batch, merkle.BatchSignature]:
        """The batch taken apart, and its tree."""
        found = self._trees.get(run.position)
        if found is None:
            batch = wire.decode_batch(run.body)
            found = batch, merkle.batch_of(batch.payloads, batch.signature)
            self._trees[run.position] = found
            self._octets += len(run.body)
            while len(self._trees) > _TREES or (self._octets > _TREES_OCTETS and len(self._trees) > 1):
                _, (oldest, _) = self._trees.popitem(last=False)
                self._octets -= sum(map(len, oldest.payloads)) + 12 * len(oldest.keys) + 66
        return found


class Outlet:
    """One subscription's way out: collects what goes and sends it in frames as full as they get."""

    def __init__(self, peer: Peer, request: int, member: int, cutter: Cutter, *, passing_max: int) -> None:
        self.peer = peer
        self.request = request
        self.member = member
        """The group member's number; unique in the broker's life, so a late word is known as such."""
        self.shed = 0
        self._cutter = cutter
        self._passing_max = passing_max
        self._run: Run | None = None
        self._picks: list[tuple[int, int]] = []
        self._parts: list[bytes] = []
        self._octets = 0
        self._passing: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def add(self, run: Run, index: int, attempt: int = 1) -> None:
        """Record `index` of the run goes to the subscriber."""
        if run is not self._run:
            self._close_run()
            self._run = run
        self._picks.append((index, attempt))

    def flush(self) -> None:
        """Send what was added."""
        self._close_run()
        self._send_parts()

    def pass_on(self, topic: str, key: int, run: bytes) -> None:
        """An ephemeral record: the newest of its key counts, and it waits for nobody else's room."""
        self._passing[topic, key] = run
        self._passing.move_to_end((topic, key))
        if len(self._passing) > self._passing_max:
            self._passing.popitem(last=False)
            self.shed += 1
        self.flush_passing()

    def flush_passing(self) -> None:
        """Send the ephemeral records if nothing else waits."""
        if self._passing and not self.peer.is_stalled:
            for run in self._passing.values():
                self._add_part(run)
            self._passing.clear()
            self._send_parts()

    def _close_run(self) -> None:
        run, picks = self._run, self._picks
        if run is None:
            return
        self._run, self._picks = None, []
        if len(picks) == run.n and all(attempt == 1 for _, attempt in picks):
            head = run.topic, run.principal, run.position, run.offset, run.at_ms
            self._add_part(wire.encode_whole(*head, run.body))
        else:
            self._add_part(self._cutter.cut(run, sorted(picks)))

    def _add_part(self, part: bytes) -> None:
        if self._parts and self._octets + len(part) > DELIVER_OCTETS:
            self._send_parts()
        self._parts.append(part)
        self._octets += len(part)

    def _send_parts(self) -> None:
        if self._parts:
            self.peer.send(wire.Deliver(self.request, b"".join(self._parts)))
            self._parts, self._octets = [], 0
