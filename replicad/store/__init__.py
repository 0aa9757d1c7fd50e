"""The replica's shelves: append-only segments of frames, the truth from which everything else can be rebuilt."""
