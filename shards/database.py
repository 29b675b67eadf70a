"""SQLite behind one door: open, migrate, one writer, short reads.

Durability is decided here and nowhere else.  Everything that waits to be written while the last fsync runs
becomes one transaction (group commit), each function in a savepoint of its own; a caller hears of its success
only after COMMIT has returned under `synchronous=FULL`.  A commit, fsync or checkpoint that fails kills the
database object for good: after a failed fsync the kernel may have dropped the pages, so nothing on this file
may be acknowledged again (the "fsyncgate" lesson).  With `shards.testing` the only room that imports apsw.
"""

from __future__ import annotations

import fcntl
import os
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

import apsw
import attrs
import trio

from shards.env import Env
from shards.errors import LocalProtocolError, LogCorrupt, LogError, LogFull, StorageFailed

T = TypeVar("T")
Value: TypeAlias = int | float | str | bytes | bytearray | memoryview | None
Then: TypeAlias = Callable[[Any, Exception | None], None]
"""(result, error): exactly one call, on the Trio thread, after the transaction has ended."""

SQLITE_MIN = (3, 51, 3)
"""Older libraries can corrupt a WAL database that two connections use (fixed 2026-03-13)."""
GROUP_ITEMS_MAX = 256
GROUP_BYTES_MAX = 1_048_576
WAL_CHECKPOINT_BYTES = 2 * 1_048_576
"""Small and often, in the writer: a background checkpointer never catches up with a busy writer."""
WAL_RESTART_BYTES = 64 * 1_048_576
"""Beyond this the writer waits for the reader once, so that the log cannot grow without bound."""
BUSY_MS = 5_000
_RESTORE = "Stop the shard, keep the file, restore the last backup (bridgectl restore)."
_PRAGMAS = (
    "temp_store=MEMORY",
    "foreign_keys=ON",
    "trusted_schema=OFF",
    "cell_size_check=ON",
    "cache_size=-16000",
)


class Connection:
    """A thin face over one apsw connection, valid inside one `write` or `read` function."""

    __slots__ = ("_after", "_db", "generation")

    def __init__(self, db: apsw.Connection, generation: int = 0) -> None:
        self._db = db
        self._after: list[Callable[[], None]] = []
        self.generation = generation
        """Changes when a group was rolled back after functions of it had returned: what they kept is void."""

    def execute(self, sql: str, params: Sequence[Value] = ()) -> list[tuple[Any, ...]]:
        """Run one or several statements to their end and return all rows."""
        # fetchall matters: apsw stops at the first row, and later statements would silently never run.
        try:
            return self._db.execute(sql, params).fetchall()
        except UnicodeDecodeError as exc:  # text that we wrote is UTF-8: somebody flipped a bit
            raise LogCorrupt(f"a text column is not UTF-8: {exc}", hint=_RESTORE) from exc

    def executemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run one statement once a row."""
        self._db.executemany(sql, rows)

    def one(self, sql: str, params: Sequence[Value] = ()) -> tuple[Any, ...] | None:
        """The first row, or None."""
        rows = self.execute(sql, params)
        return rows[0] if rows else None

    def after_commit(self, call: Callable[[], None]) -> None:
        """Have `call` run on the Trio thread once this work is durable; it is dropped if the work is."""
        self._after.append(call)

    def changes(self) -> int:
        """Rows changed by the last statement."""
        return int(self._db.changes())

    def last_rowid(self) -> int:
        """Row id of the last insert."""
        return int(self._db.last_insert_rowid())


class _GroupFull(Exception):
    """The quota ended a whole group before its COMMIT; the cause is apsw's."""


@attrs.define(slots=True, eq=False)
class _Item:
    fn: Callable[[Connection], Any]
    then: Then
    octets: int = 0
    transaction: bool = True
    after: Sequence[Callable[[], None]] = ()
    result: Any = None
    error: Exception | None = None


@attrs.frozen(kw_only=True)
class DatabaseStatistics:
    """Counters since the database was opened."""

    commits: int
    items: int
    waiting: int
    wal_bytes: int


class Database:
    """One SQLite file, opened by `open_database`."""

    def __init__(self, env: Env, path: Path, writer: apsw.Connection | None, reader: apsw.Connection) -> None:
        self.path = path
        self.env = env
        self._writer = writer
        self._reader = reader
        self._reading = trio.Lock()
        self._token = trio.lowlevel.current_trio_token()
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._inline: deque[_Item] = deque()
        self._inline_wake = trio.Event()
        self._failed = trio.Event()
        self._when_failed: list[Callable[[], None]] = []
        self._dead: StorageFailed | None = None
        self._closed = False
        self._waiting = 0
        self._commits = 0
        self._items = 0
        self._wal_pages = 0
        self._generation = 0
        self._page_size = int(reader.pragma("page_size"))
        if writer is not None:
            writer.set_wal_hook(self._note_wal)

    # ---------------------------------------------------------------- callers

    def submit(self, fn: Callable[[Connection], T], then: Then, *, octets: int = 0) -> None:
        """Queue `fn` for the next transaction; `then` hears of it after the COMMIT.  Never blocks.

        Args:
            fn: Runs in the writer (another thread in the daemon), in its own savepoint, and perhaps long
                after this call: it should take its input when it runs.
            then: Called with (result, None) or (None, error) on the Trio thread.
            octets: About how many bytes it will write; groups are closed at 1 MiB.

        Raises:
            StorageFailed: The storage failed before.
            LocalProtocolError: The database is closed or read-only.
        """
        self.check_open(writing=True)
        self._put(_Item(fn, then, octets))

    async def write(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` in a group-committed transaction; return its result after the COMMIT returned.

        Once begun it is shielded: a cancelled caller gets the result, never a doubt.  An exception of `fn`
        rolls back what `fn` did, alone, and is raised here.

        Raises:
            StorageFailed: A commit or fsync failed, now or before; the database is dead.
            LogFull: The disk was full before anything was committed.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.check_open(writing=True)
        return await self._wait_for(_Item(fn, _ignore))  # type: ignore[no-any-return]

    async def read(self, fn: Callable[[Connection], T]) -> T:
        """Run `fn` on the read-only connection in one short transaction and return its result.

        It sees every commit that was acknowledged before the call.  With one connection only (`env.vfs`), it
        runs in the writer between two groups.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self.check_open(writing=False)
        if self._writer is self._reader:
            return await self._wait_for(_Item(fn, _ignore, transaction=False))  # type: ignore[no-any-return]
        async with self._reading:
            with trio.CancelScope(shield=True):
                result: T = await self.env.run_sync(self._read_now, fn)
            return result

    async def wait_failed(self) -> NoReturn:
        """Wait until the storage has failed, then raise StorageFailed; never returns."""
        await self._failed.wait()
        assert self._dead is not None
        raise _again(self._dead)

    def when_failed(self, call: Callable[[], None]) -> None:
        """Have `call` run once, on the Trio thread, when the storage fails."""
        self._when_failed.append(call)

    @property
    def failed(self) -> StorageFailed | None:
        """Why nothing on this file may be acknowledged again, or None."""
        return self._dead

    @property
    def writable(self) -> bool:
        """False when opened to read."""
        return self._writer is not None

    def statistics(self) -> DatabaseStatistics:
        return DatabaseStatistics(
            commits=self._commits,
            items=self._items,
            waiting=self._waiting,
            wal_bytes=self._wal_pages * self._page_size,
        )

    def check_open(self, *, writing: bool = True) -> None:
        """Raise StorageFailed or LocalProtocolError unless it can be used."""
        if self._dead is not None:
            raise _again(self._dead)
        if self._closed:
            raise LocalProtocolError(f"{self.path.name} is closed")
        if writing and self._writer is None:
            raise LocalProtocolError(f"{self.path.name} was opened read-only")

    def _put(self, item: _Item) -> None:
        self._waiting += 1
        if self.env.threads:
            self._queue.put(item)
        else:
            self._inline.append(item)
            self._inline_wake.set()

    async def _wait_for(self, item: _Item) -> Any:
        done = trio.Event()
        item.then = lambda result, error: done.set()
        self._put(item)
        with trio.CancelScope(shield=True):
            await done.wait()
        if item.error is not None:
            raise item.error
        return item.result

    def _read_now(self, fn: Callable[[Connection], T]) -> T:
        db = self._reader
        try:
            db.execute("BEGIN").fetchall()
            try:
                return fn(Connection(db))
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK").fetchall()
        except apsw.Error as exc:
            raise _translate(exc, self.path) from exc

    # ---------------------------------------------------------------- the writer (its own thread, or a task)

    def _note_wal(self, _db: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return 0

    def _run_thread(self) -> None:
        """Drain, commit, tell; until None comes."""
        take = self._queue.get_nowait
        closing = False
        while not closing:
            first = self._queue.get()
            if first is None:
                return
            group, octets = [first], first.octets
            with suppress(queue.Empty):
                while len(group) < GROUP_ITEMS_MAX and octets < GROUP_BYTES_MAX:
                    item = take()
                    if item is None:
                        closing = True
                        break
                    group.append(item)
                    octets += item.octets
            self._begin_group(group)
            self._end_group(group)
            try:
                self._token.run_sync_soon(self._tell, group)
            except trio.RunFinishedError:
                return
            if self._checkpoint_is_due():
                self._checkpoint()

    async def _run_task(self) -> None:
        """The same in this thread, for a simulation: one group a turn, through the injected `run_sync`."""
        with trio.CancelScope(shield=True):
            while self._inline or not self._closed:
                await self._inline_wake.wait()
                if not self._inline:
                    self._inline_wake = trio.Event()
                    if self._closed:
                        return
                    continue
                # The door first, the work after: what is queued while "the disk is busy" joins the group.
                # And another before the COMMIT: it is not done when the work is.
                group = await self.env.run_sync(self._begin_inline)
                await self.env.run_sync(self._end_group, group)
                self._tell(group)
                if self._checkpoint_is_due():
                    await self.env.run_sync(self._checkpoint)

    def _close(self) -> None:
        """Take nothing new; the writer ends when the queue is empty."""
        self._closed = True
        self._queue.put(None)
        self._inline_wake.set()

    def _begin_inline(self) -> list[_Item]:
        group: list[_Item] = []
        octets = 0
        while self._inline and len(group) < GROUP_ITEMS_MAX and octets < GROUP_BYTES_MAX:
            group.append(self._inline.popleft())
            octets += group[-1].octets
        self._begin_group(group)
        return group

    def _begin_group(self, group: list[_Item]) -> None:
        """Do the work of all in one transaction."""
        self._guarded(self._work, group)

    def _end_group(self, group: list[_Item]) -> None:
        """Make it durable; afterwards each item carries its result or its error."""
        self._guarded(self._commit, group)

    def _guarded(self, step: Callable[[list[_Item]], None], group: list[_Item]) -> None:
        if self._dead is None:
            try:
                step(group)
            except _GroupFull as exc:
                for item in group:
                    if item.transaction:
                        item.result, item.error = None, _translate(exc.__cause__ or exc, self.path)
            except (apsw.Error, OSError) as exc:
                self._die(exc)
        if self._dead is not None:
            for item in group:
                item.result, item.error = None, _again(self._dead)

    def _work(self, group: list[_Item]) -> None:
        db = self._writer
        assert db is not None
        connection = Connection(db, self._generation)
        if any(item.transaction for item in group):
            db.execute("BEGIN IMMEDIATE").fetchall()
            try:
                for item in group:
                    if item.transaction:
                        self._run_item(db, connection, item)
            except apsw.FullError as exc:
                # Nothing reached COMMIT, nobody was told: the quota is full, but the file is sound.
                if db.in_transaction:
                    db.execute("ROLLBACK").fetchall()
                self._generation += 1
                raise _GroupFull from exc

    def _commit(self, group: list[_Item]) -> None:
        assert self._writer is not None
        if self._writer.in_transaction:
            self.env.maybe(f"{self.path.stem}.commit")
            self._writer.execute("COMMIT").fetchall()
            self._commits += 1
            self.env.maybe(f"{self.path.stem}.committed")
        for item in group:
            if not item.transaction:  # a read, where there is one connection only
                try:
                    item.result = self._read_now(item.fn)
                except Exception as exc:
                    item.error = exc

    def _run_item(self, db: apsw.Connection, connection: Connection, item: _Item) -> None:
        db.execute("SAVEPOINT item").fetchall()
        try:
            item.result = item.fn(connection)
            item.after, connection._after = connection._after, []
        except Exception as exc:
            connection._after = []
            if not db.in_transaction:
                # SQLite rolled the whole group back (its manual: FULL, IOERR, NOMEM).
                if isinstance(exc, apsw.Error):
                    raise
                raise OSError(f"the transaction was rolled back under us: {exc}") from exc
            if isinstance(exc, apsw.Error):
                error = _translate(exc, self.path)
                if isinstance(error, StorageFailed | LogCorrupt):
                    raise
                item.error = error
                item.error.__cause__ = exc
            else:
                item.error = exc
            db.execute("ROLLBACK TO item").fetchall()
        db.execute("RELEASE item").fetchall()

    def _checkpoint_is_due(self) -> bool:
        return self._dead is None and self._wal_pages * self._page_size >= WAL_CHECKPOINT_BYTES

    def _checkpoint(self) -> None:
        """Move the WAL into the file.  After the acknowledgement, so that nobody waits for it."""
        assert self._writer is not None
        octets = self._wal_pages * self._page_size
        mode = apsw.SQLITE_CHECKPOINT_PASSIVE
        if octets >= WAL_RESTART_BYTES:
            mode = apsw.SQLITE_CHECKPOINT_RESTART
        try:
            self._writer.wal_checkpoint(mode=mode)
        except apsw.BusyError:
            return  # a reader is in the way; the next group tries again
        except (apsw.Error, OSError) as exc:
            self._die(exc)

    def _die(self, exc: Exception) -> None:
        self._dead = StorageFailed(
            f"{self.path.name}: a commit failed ({type(exc).__name__}: {exc})",
            hint="Nothing is acknowledged any more.  Check the disk (dmesg, free space), then start again.",
        )
        self._dead.__cause__ = exc
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._tell_failed)

    def _tell_failed(self) -> None:
        self._failed.set()
        calls, self._when_failed = self._when_failed, []
        for call in calls:
            call()

    def _tell(self, group: list[_Item]) -> None:
        self._waiting -= len(group)
        self._items += len(group)
        for item in group:
            if item.error is None:
                for call in item.after:
                    call()
            item.then(item.result, item.error)


@asynccontextmanager
async def open_database(
    env: Env, path: Path, *, migrations: Sequence[str], page_size: int = 4096, read_only: bool = False
) -> AsyncIterator[Database]:
    """Open, check and migrate a database; close it at the end after everything queued was committed.

    The file is made with mode 0600, its directory with 0700.  `migrations` are SQL scripts; `user_version`
    counts how many have run, each in one transaction.

    Raises:
        LogError: SQLite is too old, the file was made by a newer version, or a setting does not hold.
        LogCorrupt: The file is no database of ours.
        StorageFailed: The file cannot be opened or written.
    """
    _check_library()
    writer, reader = await env.run_sync(_open_both, env, path, migrations, page_size, read_only)
    try:
        database = Database(env, path, writer, reader)
        if writer is None:
            yield database
        elif env.threads:
            thread = threading.Thread(target=database._run_thread, name=f"writer {path.name}", daemon=True)
            thread.start()
            try:
                yield database
            finally:
                database._close()
                with trio.CancelScope(shield=True):
                    await env.run_sync(thread.join)
        else:
            # An exception of the body is carried round the nursery, which would wrap it in a group.
            error: BaseException | None = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(database._run_task)
                try:
                    yield database
                except BaseException as exc:  # noqa: ASYNC103 - raised below, outside of the nursery
                    error = exc
                finally:
                    database._close()
            if error is not None:
                raise error
    finally:
        _shut(reader)
        if writer is not None:
            _shut(writer)


@contextmanager
def lock_state(directory: Path, name: str = "lock") -> Iterator[None]:
    """Hold `directory/name` by flock for life: one process owns the files of a state directory.

    The kernel frees the lock when the process ends, however it ends, so a stale file means nothing.

    Raises:
        LogError: Another process holds it; the message has its pid.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / name
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise LogError(
                f"{directory} is in use by process {holder}",
                hint="A shard already runs on this directory; stop it first, or talk to it with bridgectl.",
            ) from exc
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


# -------------------------------------------------------------------- opening


def _ignore(_result: Any, _error: Exception | None) -> None:
    return None


def _open_both(
    env: Env, path: Path, migrations: Sequence[str], page_size: int, read_only: bool
) -> tuple[apsw.Connection | None, apsw.Connection]:
    """(writer, reader); the same connection twice where the VFS allows only one."""
    writer: apsw.Connection | None = None
    try:
        if read_only:
            if env.vfs is None and not path.exists():
                raise LogError(f"{path} does not exist", hint="Is this the directory of a shard?")
            reader = _open(env, path, apsw.SQLITE_OPEN_READONLY)
            try:
                _check_version(reader, path, migrations, exact=True)
            except BaseException:
                _shut(reader)
                raise
            return None, reader
        _make_file(env, path)
        writer = _open(env, path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        _prepare(env, writer, path, migrations, page_size)
        return writer, writer if env.vfs is not None else _open(env, path, apsw.SQLITE_OPEN_READONLY)
    except BaseException as exc:
        if writer is not None:
            _shut(writer)
        if isinstance(exc, apsw.Error | OSError):
            raise _translate(exc, path) from exc  # noqa: ASYNC104 - none of these is a Cancelled
        raise


def _check_library() -> None:
    version = tuple(int(part) for part in apsw.sqlite_lib_version().split("."))
    if version < SQLITE_MIN:
        raise LogError(
            f"SQLite {apsw.sqlite_lib_version()} can corrupt a shared WAL database",
            hint="Install apsw 3.51.3 or later.",
        )


def _make_file(env: Env, path: Path) -> None:
    if env.vfs is not None:
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Made by us, so that it and the files that SQLite puts beside it have this mode from their first byte.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _open(env: Env, path: Path, flags: int) -> apsw.Connection:
    db = apsw.Connection(str(path), flags=flags, vfs=env.vfs)
    try:
        db.set_busy_timeout(BUSY_MS if env.vfs is None else 0)
        if env.vfs is not None:
            # First of all: a Python VFS has no shared memory, so nothing can be read of a WAL file before this.
            db.execute("PRAGMA locking_mode=EXCLUSIVE").fetchall()
        for pragma in _PRAGMAS:
            db.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        _shut(db)
        raise
    return db


def _prepare(env: Env, db: apsw.Connection, path: Path, migrations: Sequence[str], page_size: int) -> None:
    """Settings, each read back: what durability rests on is asserted, never assumed."""
    db.execute(f"PRAGMA page_size={page_size}").fetchall()
    _expect(path, "journal_mode", db.pragma("journal_mode", "WAL"), "wal")
    db.execute("PRAGMA synchronous=FULL").fetchall()
    _expect(path, "synchronous", db.pragma("synchronous"), 2)
    db.execute("PRAGMA wal_autocheckpoint=0").fetchall()  # `_checkpoint` does it, and hears of its failure
    db.execute(f"PRAGMA journal_size_limit={8 * WAL_CHECKPOINT_BYTES}").fetchall()
    version = _check_version(db, path, migrations, exact=False)
    for number, script in enumerate(migrations[version:], start=version + 1):
        db.execute("BEGIN IMMEDIATE").fetchall()
        try:
            db.execute(script).fetchall()
            db.execute(f"PRAGMA user_version={number}").fetchall()
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK").fetchall()
            raise
        db.execute("COMMIT").fetchall()


def _check_version(db: apsw.Connection, path: Path, migrations: Sequence[str], *, exact: bool) -> int:
    version = int(db.pragma("user_version"))
    if version > len(migrations):
        raise LogError(
            f"{path.name} has schema {version}, this program knows {len(migrations)}",
            hint="It was written by a newer bridged; run that version, or restore an older backup.",
        )
    if exact and version < len(migrations):
        raise LogError(
            f"{path.name} has schema {version}, this program expects {len(migrations)}",
            hint="Start the shard once: it migrates its files.",
        )
    return version


def _expect(path: Path, name: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise LogError(
            f"{path.name}: {name} is {got!r}, not {wanted!r}",
            hint="The file system must support SQLite's WAL: a local disk, no network share.",
        )


def _shut(db: apsw.Connection) -> None:
    with suppress(apsw.Error, OSError):  # everything acknowledged is in the WAL already
        db.close()


# -------------------------------------------------------------------- errors


_DISK_ERRORS = (apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, apsw.PermissionsError, OSError)


def _translate(exc: BaseException, path: Path) -> LogError:
    """apsw's errors end at this room."""
    if isinstance(exc, apsw.FullError):
        return LogFull(f"{path.name}: the disk or the quota is full", hint="Free space, or trim the log.")
    if isinstance(exc, apsw.CorruptError | apsw.NotADBError):
        return LogCorrupt(
            f"{path.name}: {exc}",
            hint=_RESTORE,
        )
    if isinstance(exc, _DISK_ERRORS):
        return StorageFailed(f"{path.name}: {exc}", hint="Check the disk, its permissions and its room.")
    return LogError(f"{path.name}: {type(exc).__name__}: {exc}")


def _again(error: StorageFailed) -> StorageFailed:
    """A fresh copy for each caller, so that tracebacks do not pile up on one object."""
    copy = StorageFailed(str(error), hint=error.hint)
    copy.__cause__ = error.__cause__
    return copy
