"""Every reply as it came, kept on disk before it counts as there.

SQLite, because a request is money: a transaction is on the disk whole or not at all, after Ctrl-C,
kill -9, a full disk or a power cut; two processes may write at once; and a key is found without
reading the file. Replies are committed in groups, at most `GROUP_SECONDS` apart, since each commit
waits for the disk. The write-ahead log needs a local disk: where a file system refuses it, SQLite's
older journal is used.

A process claims the requests that it is about to send, so that a second one on the same journal
sends others. The claims of a process of this machine that died are dropped at once, those of
another machine's run out after `LEASE_SECONDS`.
"""

import hashlib
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dss_jax.core.errors import UsageError
from dss_jax.core.machine import here, is_gone
from dss_jax.core.paths import make_folder
from dss_jax.records.files import as_json
from dss_jax.records.records import Reply

VERSION = 1
GROUP_SECONDS = 0.05
LEASE_SECONDS = 60.0
LOCK_SECONDS = 60.0  # How long another process may hold the file.

_TABLES = """
create table if not exists replies (
  key text primary key, id text not null, sample integer not null, failed integer not null,
  prompt_tokens integer not null, completion_tokens integer not null, time real not null,
  reply text not null
) without rowid;
create table if not exists claims (
  key text primary key, owner text not null, until real not null
) without rowid;
create index if not exists owners on claims (owner);
create table if not exists runs (
  owner text primary key, extraction text not null, seconds real not null, retries integer not null
) without rowid;
"""

_PUT = """
insert into replies values (?, ?, ?, ?, ?, ?, ?, ?) on conflict (key) do update set
  failed = excluded.failed, prompt_tokens = replies.prompt_tokens + excluded.prompt_tokens,
  completion_tokens = replies.completion_tokens + excluded.completion_tokens,
  time = excluded.time, reply = excluded.reply
where replies.failed
"""  # A given-up request never replaces an answer that another process got. What it took is added.

_REPLY_FIELDS = tuple(field.name for field in fields(Reply))
_REPLY = "select prompt_tokens, completion_tokens, reply from replies where key = ?"

_FAILED = "select key, failed from replies where key in (select value from json_each(?))"
_CLAIM = """
insert into claims values (?1, ?2, ?3)
on conflict (key) do update set owner = ?2, until = ?3 where until < ?4
"""

_EFFORT = "select total(seconds), coalesce(sum(retries), 0) from runs where extraction = ?"


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a teacher: a sample of a row."""

    id: str  # Of the row.
    sample: int  # Its index, from 0.
    # As the OpenAI protocol has it: `model`, `messages` or `prompt`, sampling parameters. Holds no
    # key and no address.
    body: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Under which its reply is kept: SHA-256, in hex, of body and sample index."""
        return hashlib.sha256(as_json([self.body, self.sample], sort_keys=True)).hexdigest()


class Asked(NamedTuple):
    """A request of which only this is at hand, as of one that an earlier process has sent."""

    key: str
    id: str
    sample: int


_Asking = TypeVar("_Asking", Request, Asked)


class Journal:
    """The replies of an SQLite file, made where there is none, and the claims on requests.

    Raises:
      UsageError: the file cannot be opened or written, is no journal, or of a newer version.
    """

    def __init__(
        self, path: str | os.PathLike[str], clock: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path)
        self.owner = f"{here()}:{os.getpid()}:{uuid.uuid4().hex}"
        self._clock = clock
        self._waiting: dict[str, tuple] = {}
        self._run: tuple[str, float, int] | None = None
        self._last_commit = self._last_beat = clock()
        try:
            make_folder(self.path.parent)
            self._db = sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None)
            self._use_write_ahead_log()
            self._db.execute("pragma synchronous = full")
            found = self._db.execute("pragma user_version").fetchone()[0]
            if found > VERSION:
                raise UsageError(
                    f"{self.path} is a journal of version {found}; this dss-jax knows {VERSION}. "
                    "Use a newer dss-jax, or another --journal."
                )
            self._db.executescript(_TABLES)
            self._db.execute(f"pragma user_version = {VERSION}")
            self.drop_claims_of_the_dead()
        except (sqlite3.Error, OSError) as error:
            raise self._trouble(error) from error

    def _use_write_ahead_log(self) -> None:
        # SQLite does not wait by itself here where two processes make the file at once.
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return self._db.execute("pragma journal_mode = wal").close()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            time.sleep(0.01)

    def missing(self, requests: Sequence[_Asking], *, only_failed: bool = False) -> list[_Asking]:
        """Of some thousand requests at most, those without a reply, in order.

        Those that were given up count as missing; with `only_failed` they alone.
        """
        keys = [request.key for request in requests]
        rows = self._read(_FAILED, json.dumps(keys))
        failed = dict(rows) | {key: row[3] for key, row in self._waiting.items()}
        pairs = zip(keys, requests, strict=True)
        return [request for key, request in pairs if failed.get(key, not only_failed)]

    def claim(self, requests: Sequence[Request]) -> list[Request]:
        """Takes the requests that nobody has taken or answered; gives those taken.

        Of equal requests (two rows with the same input) one is taken.
        """
        now = self._clock()
        lease = (self.owner, now + LEASE_SECONDS, now)
        with self._transaction():
            # Asked inside the transaction: another process may have answered meanwhile.
            missing = self.missing(requests)
            return [r for r in missing if self._db.execute(_CLAIM, (r.key, *lease)).rowcount]

    def drop_claims_of_the_dead(self) -> None:
        """Frees what processes of this machine had claimed that are no more."""
        for (owner,) in self._db.execute("select distinct owner from claims").fetchall():
            place, pid, _ = owner.rsplit(":", 2)
            if is_gone(place, int(pid)):
                self._db.execute("delete from claims where owner = ?", (owner,))

    def put(self, request: Request | Asked, reply: Reply) -> None:
        """Keeps a reply; it is on the disk after the next `flush`."""
        # Not `asdict`, which copies; this is done for each reply.
        text = as_json({name: getattr(reply, name) for name in _REPLY_FIELDS}).decode()
        row_id = request.id.encode(errors="backslashreplace").decode()
        counts = (int(reply.failed), reply.prompt_tokens, reply.completion_tokens)
        row = (request.key, row_id, request.sample, *counts, self._clock(), text)
        self._waiting[request.key] = row
        if self._clock() - self._last_commit > GROUP_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Brings what was put onto the disk, and renews the claims of this process.

        Raises:
          UsageError: the disk is full or cannot be written; nothing that was flushed is lost.
        """
        now = self._clock()
        beat = now - self._last_beat > LEASE_SECONDS / 4
        if self._waiting or beat or self._run is not None:
            with self._transaction():
                self._db.executemany(_PUT, self._waiting.values())
                keys = [(key,) for key in self._waiting]
                self._db.executemany("delete from claims where key = ?", keys)
                if self._run is not None:
                    run = (self.owner, *self._run)
                    self._db.execute("insert or replace into runs values (?, ?, ?, ?)", run)
                if beat:
                    lease = (now + LEASE_SECONDS, self.owner)
                    self._db.execute("update claims set until = ? where owner = ?", lease)
                    self._last_beat = now
            self._waiting.clear()
            self._run = None
        self._last_commit = self._clock()

    def note_run(self, extraction: str, seconds: float, retries: int) -> None:
        """What the run of this process has taken so far; on the disk with the next replies.

        `extraction` is a digest of what is asked: journals may be shared.
        """
        self._run = (extraction, seconds, retries)

    def effort(self, extraction: str) -> tuple[float, int]:
        """(seconds, retries) of all runs that got a reply; those of processes at once add up."""
        self.flush()
        return self._read(_EFFORT, extraction)[0]

    def reply(self, key: str) -> Reply | None:
        """The reply to a request; None where there is none yet."""
        if key in self._waiting:
            self.flush()
        for kept in self._read(_REPLY, key):
            # The columns have the tokens of all attempts, the text those of the last.
            tokens = {"prompt_tokens": kept[0], "completion_tokens": kept[1]}
            try:
                return Reply(**json.loads(kept[2]) | tokens)
            except (ValueError, TypeError) as error:
                raise self._trouble(error) from error
        return None

    def _read(self, query: str, value: str) -> list[tuple]:
        try:
            return self._db.execute(query, (value,)).fetchall()
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def release_claims(self) -> None:
        """Lets others take what this process has claimed and not answered."""
        with self._transaction():
            self._db.execute("delete from claims where owner = ?", (self.owner,))

    def close(self) -> None:
        """Flushes, releases the claims, and closes the file."""
        self.flush()
        self.release_claims()
        self._db.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None or not issubclass(kind, UsageError):
            self.close()
        else:
            self._db.close()  # The disk may be full: what is on it stays.

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A write transaction; SQLite's errors become `UsageError`s."""
        try:
            self._db.execute("begin immediate")
            try:
                yield
                self._db.execute("commit")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("rollback")
                raise
        except sqlite3.Error as error:
            raise self._trouble(error) from error

    def _trouble(self, error: Exception) -> UsageError:
        return UsageError(
            f"the journal {self.path} cannot be used: {error}. What it holds is kept. Make room on "
            "the disk, take a whole copy of it or give another --journal, and run the same command "
            "again."
        )
