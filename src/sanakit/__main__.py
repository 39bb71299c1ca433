"""`python -m sanakit` is the `sanakit` command."""

from sanakit.cli.main import main

main()
