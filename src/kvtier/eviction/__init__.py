"""Who leaves when a tier is full: one algorithm a file, behind the contract of `base`."""
