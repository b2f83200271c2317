"""HTTP in and out. No caching and no inference logic."""
