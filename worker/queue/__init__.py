"""How jobs are taken, kept and settled."""
