"""Ledger schema: the ledger's tables, version by version. A ledger of an older version is brought up to date when it is
opened; nothing that was recorded is lost by that.
"""

from __future__ import annotations

from replicad.db.due import SCHEMA

MIGRATIONS = (
    """
    CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    CREATE TABLE directory(id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE);
    CREATE TABLE entry(
        directory INTEGER NOT NULL, name BLOB NOT NULL, kind INTEGER NOT NULL,
        mode INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
        device INTEGER NOT NULL, inode INTEGER NOT NULL, size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
        file INTEGER NOT NULL, block_bytes INTEGER NOT NULL, flags INTEGER NOT NULL,
        extra BLOB, seq INTEGER NOT NULL,
        PRIMARY KEY(directory, name)) WITHOUT ROWID;
    CREATE INDEX entry_inode ON entry(inode) WHERE file > 0;
    CREATE TABLE block(
        file INTEGER NOT NULL, number INTEGER NOT NULL, id BLOB NOT NULL, checksum BLOB NOT NULL, seq INTEGER NOT NULL,
        PRIMARY KEY(file, number)) WITHOUT ROWID;
    CREATE TABLE cut(
        file INTEGER NOT NULL, seq INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY(file, seq)) WITHOUT ROWID;
    CREATE TABLE gone(path BLOB PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE replica(
        name TEXT PRIMARY KEY, covered INTEGER NOT NULL, head INTEGER NOT NULL, head_digest BLOB NOT NULL,
        sent_covered INTEGER NOT NULL, sent INTEGER NOT NULL, sent_digest BLOB NOT NULL) WITHOUT ROWID;
    """,
    SCHEMA,
    """
    CREATE TABLE unnamed(
        file INTEGER PRIMARY KEY, kind INTEGER NOT NULL, mode INTEGER NOT NULL, uid INTEGER NOT NULL,
        gid INTEGER NOT NULL, device INTEGER NOT NULL, inode INTEGER NOT NULL, size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, block_bytes INTEGER NOT NULL, flags INTEGER NOT NULL,
        extra BLOB, seq INTEGER NOT NULL, walk INTEGER NOT NULL);
    CREATE INDEX unnamed_inode ON unnamed(inode);
    """,
    """
    INSERT OR REPLACE INTO meta
        SELECT 'unsettled', 1 FROM entry WHERE seq = 4611686018427387904 AND size >= 0 LIMIT 1;
    DELETE FROM block WHERE file IN (
        SELECT b.file FROM block b GROUP BY b.file
        HAVING NOT EXISTS(SELECT 1 FROM entry e WHERE e.file = b.file)
        AND NOT EXISTS(SELECT 1 FROM unnamed u WHERE u.file = b.file));
    """,
)
"""Version history: 1 = first; 2 = when each part was verified (db/due.py); 3 = files that lost their last name; 4 = 3
without what older versions did wrong: they forgot that something was unsettled, and left the blocks of files that gave
way to a hard link, against which nothing can be held since no entry says whose they are."""
