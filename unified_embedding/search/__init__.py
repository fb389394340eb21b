"""What search.py, the API and its page share: pictures they may show, hits in groups, engines."""
