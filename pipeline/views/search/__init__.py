"""Results of a search: text, JSON and a self-contained HTML page with thumbnails."""
