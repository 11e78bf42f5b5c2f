"""``python -m specplug``."""

from specplug.cli import main

main()
