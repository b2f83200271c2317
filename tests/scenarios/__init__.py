"""The scenarios of the design's acceptance notes, each a test whose docstring starts with its number."""
