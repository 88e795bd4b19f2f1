"""What happens to one document, read top to bottom: fetch, parse, chunk, embed, publish."""
