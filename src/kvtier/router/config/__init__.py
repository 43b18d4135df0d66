"""EndpointPickerConfig files, and the profiles and indexes that are built from them."""
