"""Why engines share or do not, and whether this machine can do what the settings ask for."""
