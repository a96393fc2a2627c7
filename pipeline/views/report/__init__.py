"""``report``: one self-contained HTML file of a spec's results: tables, curves, sessions, retention, turn order."""
