"""Compiled loops: scalars and tight loops over arrays, outputs passed in, nothing raised."""
