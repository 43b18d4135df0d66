"""Keeping blocks below RAM: one kind of place a file or folder, behind the contract of `base`."""
