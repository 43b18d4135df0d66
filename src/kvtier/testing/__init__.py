"""Contract suites, fault injection and in-memory stand-ins, shipped for the authors of plug-ins."""
