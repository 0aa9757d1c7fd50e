"""The primary's data, read-only: walk it, watch it, read it."""
