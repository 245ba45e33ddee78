"""The study's own code: what the chapters of the book need beyond the library."""
