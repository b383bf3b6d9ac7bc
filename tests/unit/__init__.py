"""Machines and translations without I/O."""
