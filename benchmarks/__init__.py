"""Measurements over HTTP. Nothing here imports the service: it is one server among others."""
