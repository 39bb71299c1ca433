"""The `sanakit` command: parse, ask, write, report."""
