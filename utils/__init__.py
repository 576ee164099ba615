"""Small pieces that more than one folder needs; this package imports no other of the project."""

VOID = 255  # the train id of positions that nobody labelled
