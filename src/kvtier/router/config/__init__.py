"""EndpointPickerConfig files: reading them, and building profiles and indexes from them."""
