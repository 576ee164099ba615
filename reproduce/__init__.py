"""The experiments of the paper: commands that run them, and tables and figures of their committed results."""
