"""Inputs made to break what reads them: `make fuzz COUNT=300000`, and a small run of the same in the suite."""
