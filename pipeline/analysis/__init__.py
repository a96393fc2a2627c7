"""What is made of finished runs: tables, figures, comparisons, ablations, searches."""
