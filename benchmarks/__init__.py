"""How fast each stage is, against the obvious way and against what this machine can do at most."""
