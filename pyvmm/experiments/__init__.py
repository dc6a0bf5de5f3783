"""Measurements of pyvmm and of the host that it runs on."""
