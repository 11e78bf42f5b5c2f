"""``python -m specplug``."""

from specplug.entry import main

main()
