"""Image pairs: from folders and from batches."""
