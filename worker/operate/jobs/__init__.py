"""`sluice jobs`: the queue by hand. `command.py` lists and shows, a file each for what follows and what changes."""
