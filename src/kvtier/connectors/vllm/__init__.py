"""The connector for vLLM: plugs into its `OffloadingConnector`."""
