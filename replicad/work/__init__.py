"""The verbs: each job composes source, store, db and link; nothing else does."""
