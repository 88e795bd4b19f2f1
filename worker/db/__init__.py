"""The database as the worker sees it: a pool, and calls by name."""
