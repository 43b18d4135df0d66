"""Other systems' settings, read as they are: moving to kvtier is changing one line."""
