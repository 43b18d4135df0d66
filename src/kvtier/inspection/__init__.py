"""Looking into shared storage: what is in it (`survey`), and whether it is sound (`fsck`)."""
