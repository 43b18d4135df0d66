"""Who may enter a tier: one policy a file, behind the contract of `base`."""
