"""What looking at results needs: exact top-k search, trained runs, live queries and pictures of catalogue images."""
