"""Tools on feature stores that need more than the store itself: the spec that asks for it, its dataset, its extractor."""
