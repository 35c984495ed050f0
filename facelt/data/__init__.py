"""Files to batches: decoding, transforms, datasets, samplers, loader."""
