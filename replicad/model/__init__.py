"""Plain values and rules: pure, no operating system, no event loop, no clock, no logging."""
