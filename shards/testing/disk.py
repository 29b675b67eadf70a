"""A disk in memory that a test can pull the plug of, and a SQLite VFS on it.

What a process wrote is what it reads back; what it synced is what survives.  At a power cut each write that was
not synced is kept, dropped, kept in part or garbled, a sector at a time, as a seed decides.  Every call can be
made to fail: the n-th, once or from then on.  Directory entries count as durable at once.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Callable
from typing import Any, Literal

import apsw
import attrs

SECTOR = 512
"""What a disk writes whole, or not at all; SQLite's own crash tests assume the same."""

Op = tuple[Literal["write"], int, bytes] | tuple[Literal["truncate"], int]
CallKind = Literal["open", "read", "write", "truncate", "sync", "delete"]
Mode = Literal["drop", "keep", "subset", "torn"]
"""What becomes of writes that were not synced: gone, there, some of them, or some sectors of some of them."""
MODES: tuple[Mode, ...] = ("drop", "keep", "subset", "torn")
Logged = tuple[CallKind, str, Op | None]


@attrs.define(slots=True, eq=False)
class _Inode:
    """One file: what is read (`cache`), what is certain (`platter`), and what lies between."""

    cache: bytearray = attrs.Factory(bytearray)
    platter: bytearray = attrs.Factory(bytearray)
    pending: list[Op] = attrs.Factory(list)
    locked_by: object | None = None

    def change(self, op: Op) -> None:
        _apply(self.cache, op)
        self.pending.append(op)

    def sync(self) -> None:
        for op in self.pending:
            _apply(self.platter, op)
        self.pending.clear()


@attrs.define(slots=True)
class Fault:
    """Fail the `at`-th matching call (counted from 1), or that and all later ones."""

    at: int
    error: int = errno.EIO
    sticky: bool = False
    kinds: frozenset[CallKind] = frozenset({"open", "read", "write", "truncate", "sync", "delete"})
    seen: int = 0
    fired: CallKind | None = None
    """The kind of the first call that was failed."""


class MemoryDisk:
    """Files of one machine.  `vfs` is the name to hand to SQLite."""

    _numbers = itertools.count()

    def __init__(self, seed: int | str = 0) -> None:
        self.random = random.Random(f"disk/{seed}")
        self.vfs = f"memory-{next(self._numbers)}"
        self.fault: Fault | None = None
        self.calls = 0
        """Calls so far, of all kinds."""
        self.syncs = 0
        self.on_change: Callable[[Logged], None] | None = None
        """Told of each call that changed something; what a crash driver records."""
        self._cut: tuple[int, Callable[[], None]] | None = None
        self._files: dict[str, _Inode] = {}
        self._boot = 0
        self._is_on = True
        self._vfs = _MemoryVfs(self)

    def close(self) -> None:
        """Take the VFS out of SQLite's list."""
        self._vfs.unregister()

    @property
    def is_on(self) -> bool:
        return self._is_on

    def cut_after(self, calls: int, then: Callable[[], None]) -> None:
        """Call `then` in the middle of the calls-th call from now; it should pull the plug."""
        self._cut = (self.calls + calls, then)

    def power_off(self) -> None:
        """From here on every call fails, for every handle that is open."""
        self._is_on = False
        self._boot += 1

    def power_on(self) -> None:
        """Lose what was not synced, in a way that the seed decides, and begin anew."""
        for path in sorted(self._files):
            inode = self._files[path]
            inode.platter = _survive(inode, self.random.choice(MODES), self.random)
            inode.cache = bytearray(inode.platter)
            inode.pending.clear()
            inode.locked_by = None
        self.fault = None
        self._cut = None
        self._is_on = True

    def image(self, mode: Mode, r: random.Random) -> dict[str, bytes]:
        """What the platter could hold if the power went now; nothing changes."""
        return {path: bytes(_survive(inode, mode, r)) for path, inode in self._files.items()}

    def apply(self, logged: Logged) -> None:
        """Do again what another disk's `on_change` told of."""
        kind, path, op = logged
        if kind == "open":
            self._files.setdefault(path, _Inode())
        elif kind == "delete":
            self._files.pop(path, None)
        elif kind == "sync":
            self._files[path].sync()
        elif op is not None:
            self._files[path].change(op)

    def files(self) -> dict[str, bytes]:
        """What a process would read now."""
        return {path: bytes(inode.cache) for path, inode in self._files.items()}

    def put(self, path: str, data: bytes) -> None:
        """Lay a durable file."""
        self._files[path] = _Inode(cache=bytearray(data), platter=bytearray(data))

    # ---------------------------------------------------------------- for the VFS

    def count(self, kind: CallKind, path: str, boot: int) -> None:
        """Count a call; raise what the power or the fault say."""
        if not self._is_on or boot != self._boot:
            raise apsw.IOError("the power is off")
        self.calls += 1
        self.syncs += kind == "sync"
        if self._cut is not None and self.calls >= self._cut[0]:
            (_, then), self._cut = self._cut, None
            then()
            if boot != self._boot:
                raise apsw.IOError("the power went off")
        fault = self.fault
        if fault is not None and kind in fault.kinds:
            fault.seen += 1
            if fault.seen == fault.at or (fault.sticky and fault.seen > fault.at):
                fault.fired = fault.fired or kind
                raise _error(fault.error, kind)

    def changed(self, kind: CallKind, path: str, op: Op | None = None) -> None:
        if self.on_change is not None:
            self.on_change((kind, path, op))

    @property
    def boot(self) -> int:
        return self._boot


def _survive(inode: _Inode, mode: Mode, r: random.Random) -> bytearray:
    if mode == "keep":
        return bytearray(inode.cache)
    data = bytearray(inode.platter)
    if mode == "drop":
        return data
    for op in inode.pending:
        if mode == "subset":
            if r.random() < 0.5:
                _apply(data, op)
        elif op[0] == "truncate":
            if r.random() < 0.6:
                _apply(data, op)
        else:
            _tear(data, op[1], op[2], r)
    return data


def _tear(data: bytearray, offset: int, written: bytes, r: random.Random) -> None:
    for at in range(0, len(written), SECTOR):
        sector = written[at : at + SECTOR]
        chance = r.random()
        if chance < 0.6:
            _apply(data, ("write", offset + at, sector))
        elif chance < 0.68:
            _apply(data, ("write", offset + at, r.randbytes(len(sector))))


def _apply(data: bytearray, op: Op) -> None:
    if op[0] == "truncate":
        del data[op[1] :]
        return
    _, offset, written = op
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(written)] = written


def _error(number: int, kind: CallKind) -> Exception:
    if number == errno.ENOSPC and kind in ("write", "truncate"):
        return apsw.FullError(os.strerror(number))
    if kind == "open":
        return apsw.CantOpenError(os.strerror(number))
    return apsw.IOError(os.strerror(number))


class _MemoryVfs(apsw.VFS):
    def __init__(self, disk: MemoryDisk) -> None:
        self._disk = disk
        super().__init__(disk.vfs, "", maxpathname=512)

    def xOpen(self, name: object, flags: list[int]) -> Any:
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        self._disk.count("open", path, self._disk.boot)
        if path not in self._disk._files:
            if not flags[0] & apsw.SQLITE_OPEN_CREATE:
                raise apsw.CantOpenError(f"no such file: {path}")
            self._disk._files[path] = _Inode()
            self._disk.changed("open", path)
        flags[1] = flags[0]
        return _MemoryFile(self._disk, path)

    def xDelete(self, name: str, _sync_directory: bool) -> None:
        self._disk.count("delete", name, self._disk.boot)
        if self._disk._files.pop(name, None) is None:
            raise apsw.exception_for(apsw.SQLITE_IOERR_DELETE_NOENT)
        self._disk.changed("delete", name)

    def xAccess(self, name: str, _flags: int) -> bool:
        return name in self._disk._files

    def xFullPathname(self, name: str) -> str:
        return name

    def xRandomness(self, n: int) -> bytes:
        return self._disk.random.randbytes(n)

    def xSleep(self, microseconds: int) -> int:
        return microseconds


class _MemoryFile:
    """A handle.  It dies with the power, also when the power comes back."""

    def __init__(self, disk: MemoryDisk, path: str) -> None:
        self._disk, self._path, self._boot = disk, path, disk.boot
        self._inode = disk._files[path]

    def xRead(self, n: int, offset: int) -> bytes:
        self._disk.count("read", self._path, self._boot)
        return bytes(self._inode.cache[offset : offset + n])

    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.count("write", self._path, self._boot)
        op: Op = ("write", offset, bytes(data))
        self._inode.change(op)
        self._disk.changed("write", self._path, op)

    def xTruncate(self, size: int) -> None:
        self._disk.count("truncate", self._path, self._boot)
        op: Op = ("truncate", size)
        self._inode.change(op)
        self._disk.changed("truncate", self._path, op)

    def xSync(self, _flags: int) -> None:
        self._disk.count("sync", self._path, self._boot)
        self._inode.sync()
        self._disk.changed("sync", self._path)

    def xFileSize(self) -> int:
        return len(self._inode.cache)

    def xClose(self) -> None:
        self.xUnlock(apsw.SQLITE_LOCK_NONE)

    def xLock(self, level: int) -> None:
        if level >= apsw.SQLITE_LOCK_RESERVED:
            holder = self._inode.locked_by
            if holder is not None and holder is not self:
                raise apsw.BusyError("locked by another handle")
            self._inode.locked_by = self

    def xUnlock(self, level: int) -> None:
        if level < apsw.SQLITE_LOCK_RESERVED and self._inode.locked_by is self:
            self._inode.locked_by = None

    def xCheckReservedLock(self) -> bool:
        return self._inode.locked_by is not None

    def xFileControl(self, _op: int, _pointer: int) -> bool:
        return False

    def xDeviceCharacteristics(self) -> int:
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE

    def xSectorSize(self) -> int:
        return SECTOR
