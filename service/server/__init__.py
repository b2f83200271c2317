"""Processes: gunicorn's configuration and what is added to it, the workers, and the embedded Redis."""
