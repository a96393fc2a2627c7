"""Analysis of finished runs: tables, figures, comparisons, ablations, searches."""
