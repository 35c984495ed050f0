"""From files to batches: decoding, transforms, datasets, samplers, the loader."""
