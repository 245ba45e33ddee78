"""The study: what the chapters of the book need beside the library."""
