"""replicad: a corruption-detecting replication daemon.

Data flows one way: source files -> blocks -> link -> store -> catalog, and back through restore.
ARCHITECTURE.md is the map of the packages below this one.
"""

__version__ = "0.1.0"
