"""L2: the answers that all workers share, in Redis."""
