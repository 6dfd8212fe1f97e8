"""Benchmarks: each runs Fallow and a peer in one run, on the same work, and prints rows that say who is ahead."""
