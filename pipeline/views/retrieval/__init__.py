"""Shared parts of the views: exact top-k search, trained runs, live queries and pictures of catalog images."""
