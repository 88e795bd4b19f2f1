"""One module a family of formats, run only inside the sandboxed child: `parse(file, draft)` fills the draft."""
