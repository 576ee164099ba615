"""What ships: the tree that attack.py reads by default, and how it is made."""
