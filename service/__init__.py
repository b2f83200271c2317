"""A prediction service that never computes the same answer twice."""

__version__ = "0.1.0"
