"""What a person types: one module a verb group, parsing and printing only."""
