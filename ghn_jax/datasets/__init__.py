"""Image data sets: reading, preparing, batches, augmentation."""
