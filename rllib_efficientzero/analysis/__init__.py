"""The paper's experiments: reading runs, honest statistics, the published numbers, and a report of both.

Matplotlib is imported only when something is drawn; ray only to estimate times and to save states of environments.
"""
