"""The two books: the primary's ledger and the replica's catalog, on page-checksummed SQLite."""
