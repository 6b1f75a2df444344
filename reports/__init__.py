"""One run told as HTML, Markdown and JSON."""
