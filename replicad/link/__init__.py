"""The corridor between the two sides: messages, frames and session are pure; channel and ssh do the I/O."""
