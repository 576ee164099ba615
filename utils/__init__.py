"""Small helpers that several folders share. This package imports no other package of the project."""

VOID = 255  # train id of positions without a label
