"""Every metric kvtier has, as data: one module for each process that exposes some."""
