"""The scheduler as a process: command line, addresses, metrics, and everything above it put together."""
