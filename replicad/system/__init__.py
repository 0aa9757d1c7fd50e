"""What the operating system gives: disk, clock, service notifications, logs."""
