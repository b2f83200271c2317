"""Real processes, real sockets and a model that keeps count: what the scenarios are played with."""
