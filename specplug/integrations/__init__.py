"""Plug-ins for what people already run. Each is imported by its own name, with what it needs."""
