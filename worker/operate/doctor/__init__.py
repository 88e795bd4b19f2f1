"""`sluice doctor`: every classic failure in one sentence, with its remedy. A file a layer; `run.py` runs them."""
