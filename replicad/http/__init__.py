"""What scrapers and the CLI see of a running daemon."""
