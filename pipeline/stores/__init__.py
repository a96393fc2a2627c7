"""Tools on feature stores that also need the store's spec, dataset or extractor."""
