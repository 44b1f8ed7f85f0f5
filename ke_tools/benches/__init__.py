"""Benches: what is claimed, measured on the served model; each prints one object (see :mod:`ke_tools.benches._report`)."""
