"""`python -m local.samples DIRECTORY`."""

from __future__ import annotations

import sys
from pathlib import Path

from local.samples import write

if len(sys.argv) != 2:
    sys.exit("usage: python -m local.samples DIRECTORY")
for sample in write(Path(sys.argv[1])):
    print(sample)
