"""Pages over finished runs: a report, a search page, a preference study."""
