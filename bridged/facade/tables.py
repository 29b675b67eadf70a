"""The tables of `core.db`.  Pure.

A channel is found by tenant, service, network and chat in columns of their own, never by a joined string, so no
name can be made to read as another's (the room take-over of GHSA-xvqg-mv25-rwvw).  Everything else points at a
channel or a message by row number.  Times are milliseconds since 1970.
"""

from __future__ import annotations

from shards.outbox import OUTBOX_SCHEMA

CORE_SCHEMA = """
CREATE TABLE fact (                 -- what the facade knows of itself: settled, revision
  tenant TEXT NOT NULL,
  name   TEXT NOT NULL,
  value  INTEGER NOT NULL,
  PRIMARY KEY (tenant, name)
) WITHOUT ROWID, STRICT;

CREATE TABLE conversation (
  tenant TEXT NOT NULL,
  name   TEXT NOT NULL,
  origin TEXT NOT NULL CHECK (origin IN ('file', 'runtime')),
  PRIMARY KEY (tenant, name)
) WITHOUT ROWID, STRICT;

CREATE TABLE channel (              -- kept when it is unlinked: messages point at it
  id       INTEGER PRIMARY KEY,
  tenant   TEXT NOT NULL,
  service  TEXT NOT NULL,
  network  TEXT NOT NULL,           -- '' where the platform has one network only
  chat     TEXT NOT NULL,
  instance TEXT NOT NULL,           -- the connector that carries it
  ref      TEXT NOT NULL,
  conversation TEXT,                -- NULL: linked to nothing
  UNIQUE (tenant, service, network, chat)
) STRICT;

CREATE TABLE client (
  tenant     TEXT NOT NULL,
  name       TEXT NOT NULL,
  identity   TEXT NOT NULL,
  display    TEXT NOT NULL,
  token_hash BLOB,                  -- SHA-256 of the token; NULL for an operator, who has a key
  added_ms   INTEGER NOT NULL,
  revoked_ms INTEGER,
  PRIMARY KEY (tenant, name)
) WITHOUT ROWID, STRICT;
CREATE UNIQUE INDEX client_token ON client (tenant, token_hash) WHERE token_hash IS NOT NULL;

CREATE TABLE admission (            -- which conversations a client may read and speak in; '*' is all of them
  tenant       TEXT NOT NULL,
  client       TEXT NOT NULL,
  conversation TEXT NOT NULL,
  PRIMARY KEY (tenant, client, conversation)
) WITHOUT ROWID, STRICT;

CREATE TABLE message (
  id           INTEGER PRIMARY KEY,
  tenant       TEXT NOT NULL,
  conversation TEXT NOT NULL,
  event        INTEGER,             -- the outbox row of its event
  offset       INTEGER,             -- of its event on bridge/core/event; NULL until that is acknowledged
  message_id   TEXT NOT NULL,
  trace_id     TEXT NOT NULL,
  channel      INTEGER REFERENCES channel (id),   -- NULL: a client's
  sender       TEXT NOT NULL,
  sender_name  TEXT NOT NULL,
  kind         TEXT NOT NULL,       -- message | action | notice | gap
  text         TEXT NOT NULL,
  html         TEXT,
  reply_to     INTEGER REFERENCES message (id),
  at_ms        INTEGER NOT NULL,    -- when it was said, by its platform's clock
  edits        INTEGER NOT NULL DEFAULT 0,
  redacted     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE UNIQUE INDEX message_by_id ON message (tenant, message_id);
CREATE INDEX message_by_offset ON message (tenant, conversation, offset);
CREATE INDEX message_unpublished ON message (event) WHERE offset IS NULL;
CREATE INDEX message_by_trace ON message (tenant, trace_id);

CREATE TABLE earlier (              -- what an edited message said before
  message  INTEGER NOT NULL REFERENCES message (id),
  edit     INTEGER NOT NULL,        -- 0 is the first text
  trace_id TEXT NOT NULL,           -- of the edit that replaced it
  text     TEXT NOT NULL,
  html     TEXT,
  at_ms    INTEGER NOT NULL,
  PRIMARY KEY (message, edit)
) WITHOUT ROWID, STRICT;

CREATE TABLE reaction (
  message INTEGER NOT NULL REFERENCES message (id),
  sender  TEXT NOT NULL,
  emoji   TEXT NOT NULL,
  name    TEXT NOT NULL,
  at_ms   INTEGER NOT NULL,
  PRIMARY KEY (message, sender, emoji)
) WITHOUT ROWID, STRICT;

CREATE TABLE remote (               -- what a platform calls a message; also what has been received already
  channel   INTEGER NOT NULL REFERENCES channel (id),
  remote_id TEXT NOT NULL,
  scope     TEXT NOT NULL,          -- '' for an id of the server's, else the sender who chose it
  message   INTEGER NOT NULL REFERENCES message (id),
  part      INTEGER NOT NULL,       -- 0: the one to point at; others: further lines of it, other names of it
  PRIMARY KEY (channel, remote_id, scope)
) WITHOUT ROWID, STRICT;
CREATE INDEX remote_by_message ON remote (message, channel, part);

CREATE TABLE seen (                 -- edits, reactions and redactions that have been received already
  channel   INTEGER NOT NULL REFERENCES channel (id),
  kind      TEXT NOT NULL,
  remote_id TEXT NOT NULL,
  version   TEXT NOT NULL,
  scope     TEXT NOT NULL,
  PRIMARY KEY (channel, kind, remote_id, version, scope)
) WITHOUT ROWID, STRICT;

CREATE TABLE tombstone (            -- a redaction that came before its message
  channel   INTEGER NOT NULL REFERENCES channel (id),
  remote_id TEXT NOT NULL,
  sender    TEXT NOT NULL,          -- '' where the platform's server vouched for it
  PRIMARY KEY (channel, remote_id, sender)
) WITHOUT ROWID, STRICT;

CREATE TABLE cursor (
  tenant   TEXT NOT NULL,
  service  TEXT NOT NULL,
  instance TEXT NOT NULL,
  stream   TEXT NOT NULL,
  value    TEXT NOT NULL,
  at       TEXT NOT NULL,
  position INTEGER NOT NULL,        -- in the journal, of the record that moved it
  PRIMARY KEY (tenant, service, instance, stream)
) WITHOUT ROWID, STRICT;

CREATE TABLE taken (                -- records applied beyond fact 'settled', and all that were refused
  tenant   TEXT NOT NULL,
  position INTEGER NOT NULL,
  refused  INTEGER NOT NULL,
  PRIMARY KEY (tenant, position)
) WITHOUT ROWID, STRICT;

CREATE TABLE delivery (             -- where each intent stands in each channel
  tenant   TEXT NOT NULL,
  trace_id TEXT NOT NULL,
  channel  INTEGER NOT NULL REFERENCES channel (id),
  message  INTEGER REFERENCES message (id),   -- NULL: denied before there was one
  state    TEXT NOT NULL,
  attempt  INTEGER NOT NULL DEFAULT 0,
  at_ms    INTEGER NOT NULL,
  error    TEXT,                    -- JSON
  PRIMARY KEY (tenant, trace_id, channel)
) WITHOUT ROWID, STRICT;

CREATE TABLE intent (               -- what a client asked for, so that asking again is answered the same
  tenant   TEXT NOT NULL,
  speaker  TEXT NOT NULL,
  key      TEXT NOT NULL,           -- its idempotency key
  digest   BLOB NOT NULL,
  answer   TEXT NOT NULL,           -- JSON
  at_ms    INTEGER NOT NULL,
  PRIMARY KEY (tenant, speaker, key)
) WITHOUT ROWID, STRICT;

CREATE TABLE trail (                -- what happened under a trace id, in order; the decisions are among it
  id       INTEGER PRIMARY KEY,
  tenant   TEXT NOT NULL,
  trace_id TEXT NOT NULL,
  at_ms    INTEGER NOT NULL,
  kind     TEXT NOT NULL,           -- envelope | intent | decision | event | status | dropped
  channel  INTEGER REFERENCES channel (id),
  word     TEXT NOT NULL,
  detail   TEXT                     -- JSON, never a message's text
) STRICT;
CREATE INDEX trail_by_trace ON trail (tenant, trace_id);

CREATE VIRTUAL TABLE message_text USING fts5 (
  text, content = 'message', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 2'
);
INSERT INTO message_text (message_text, rank) VALUES ('secure-delete', 1);   -- a redacted word leaves the index
"""

MIGRATIONS = (CORE_SCHEMA + OUTBOX_SCHEMA,)
"""Scripts in order; a released one is never changed, the next is added behind it."""
