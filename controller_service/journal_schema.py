"""The journal's tables, and what makes those of earlier formats like them."""

from __future__ import annotations

VERSION = 7
"""The format, as the last of these sets it."""
TASKS = """
CREATE TABLE tasks (
    task_id BLOB PRIMARY KEY, frame BLOB NOT NULL, submitted_ns INTEGER NOT NULL, arrival INTEGER NOT NULL,
    attempts INTEGER NOT NULL, engine_id INTEGER NOT NULL, epoch INTEGER NOT NULL
);
"""
ATTEMPTS = """
PRAGMA user_version = 7;
ALTER TABLE tasks ADD COLUMN rejected_by TEXT NOT NULL DEFAULT '';
ALTER TABLE results ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
ALTER TABLE results ADD COLUMN label TEXT NOT NULL DEFAULT '';
"""
SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('kept_bytes', 0);
CREATE TABLE engines (
    engine_id INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, retired INTEGER NOT NULL, hello BLOB NOT NULL,
    ip TEXT NOT NULL, port INTEGER NOT NULL, registered_ms INTEGER NOT NULL, is_first INTEGER NOT NULL,
    lease_used REAL NOT NULL
);
CREATE TABLE results (
    number INTEGER PRIMARY KEY, operation_id BLOB NOT NULL UNIQUE, engine_id INTEGER NOT NULL,
    method INTEGER NOT NULL, session_id BLOB NOT NULL, outcome INTEGER NOT NULL, ended_ms INTEGER NOT NULL,
    kept_ms INTEGER NOT NULL, size INTEGER NOT NULL, is_file INTEGER NOT NULL, is_error INTEGER NOT NULL,
    answer BLOB NOT NULL
);
CREATE TABLE calls (
    operation_id BLOB NOT NULL, engine_id INTEGER NOT NULL, epoch INTEGER NOT NULL, kept_ms INTEGER NOT NULL,
    PRIMARY KEY (operation_id, engine_id)
) WITHOUT ROWID;
CREATE INDEX files ON results (operation_id) WHERE is_file;
CREATE TRIGGER kept AFTER INSERT ON results BEGIN
    UPDATE meta SET value = value + NEW.size WHERE name = 'kept_bytes';
END;
CREATE TRIGGER removed AFTER DELETE ON results BEGIN
    UPDATE meta SET value = value - OLD.size WHERE name = 'kept_bytes';
END;
"""
