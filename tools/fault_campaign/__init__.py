"""Faults on purpose: processes killed, disks that fail, files that lie; what the scripts make of them."""
