"""The paper's experiments: reading runs, honest statistics, the published numbers, and a report of both.

Only numpy, torch and the standard library are imported here; matplotlib when something is drawn, ray never.
"""
