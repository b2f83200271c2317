"""Image models: networks on a CPU or a GPU."""
