"""``make figures``: what docs/reliability.md promises, measured on real processes. Speaks HTTP and Redis only."""
