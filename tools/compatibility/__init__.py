"""The rooms of `tools/compat.py`: common, packages, building, machine_code, running, results, page."""
