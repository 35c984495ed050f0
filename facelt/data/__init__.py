"""Image data: decoding, transforms, datasets, kinds of data, samplers, loaders."""
