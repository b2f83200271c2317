"""Keys, entries, the two cache levels and the flight. Blind to HTTP and to models: bytes in, bytes out."""
