"""Parse: bytes become pages of Markdown, behind one protocol for local and remote parsers."""
