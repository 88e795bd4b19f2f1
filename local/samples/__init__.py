"""The demo's own documents: the papers of an invented harbour, in six formats, the same bytes every time.

    python -m local.samples DIRECTORY

writes them. Their text is in `papers/`: PDF and Word files are drawn from Markdown there, the others are
taken as they are. What they say is made up; QUESTIONS can be answered from them, each on one page.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from local.samples.paper import read
from local.samples.pdf import pdf
from local.samples.word import word

PAPERS = Path(__file__).with_name("papers")


@dataclass(frozen=True, slots=True)
class Question:
    """Something the samples answer: in which of them, and on which page."""

    ask: str
    document: str
    page: int


QUESTIONS = (
    Question("How long may a visiting yacht stay at the guest pontoon?", "harbour-handbook.pdf", 3),
    Question("What wind speed stops the container cranes?", "harbour-handbook.pdf", 4),
    Question("When should lamps be shaded for young petrels?", "harbour-gazette.pdf", 1),
    Question("Why was the old lighthouse lamp replaced?", "harbour-gazette.pdf", 2),
    Question("Who must take a pilot when entering the sound?", "pilotage-notice.docx", 1),
    Question("What does a cruise ship pay for fresh water?", "berth-tariff.html", 1),
    Question("What does the night watch do when the fog signal fails?", "night-watch.md", 1),
    Question("Tide gauge at Gull Skerry", "tide-gauges.csv", 1),
)


def write(directory: Path) -> list[Path]:
    """Write every sample into `directory` and return their paths."""
    files = {
        "harbour-handbook.pdf": pdf(read(PAPERS / "harbour-handbook.md"), "Kestrel Sound Harbour Handbook"),
        "harbour-gazette.pdf": pdf(read(PAPERS / "harbour-gazette.md"), "Kestrel Sound Gazette", columns=2),
        "pilotage-notice.docx": word(read(PAPERS / "pilotage-notice.md")),
        **{name: (PAPERS / name).read_bytes() for name in ("berth-tariff.html", "night-watch.md", "tide-gauges.csv")},
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return [directory / name for name in files]
