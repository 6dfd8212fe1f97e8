"""Pilots: how many of which length to have where there is a batch system, as an ordinary user of it."""
