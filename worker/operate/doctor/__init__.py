"""`sluice doctor`: every classic failure in one sentence, with its remedy. One file a layer; `run.py` runs the checks."""
