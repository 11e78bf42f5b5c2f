"""``specplug bench``: engines, precisions and drafters side by side, on this machine.

Whatever is compared alternates within one run, so that a slow moment hits all of it.
"""
