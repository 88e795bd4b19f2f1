"""Sluice's worker: turns stored files into searchable chunks."""
