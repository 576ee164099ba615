"""Speed and memory of each stage, compared with simple code and with the limits of the machine."""
