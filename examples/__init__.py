"""The tree that attack.py reads by default, the code that makes it, and the figure of the README."""
