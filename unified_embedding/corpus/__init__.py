"""A corpus: where its pictures come from, and where its rows go. Needs the extra `client`."""
