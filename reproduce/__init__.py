"""The experiments behind the tables: commands that run them, and what builds tables from their committed results."""
