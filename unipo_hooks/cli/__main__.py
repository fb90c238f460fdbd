"""`python -m unipo_hooks.cli`."""

from unipo_hooks.cli import main

main()
