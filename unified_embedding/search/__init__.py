"""What the search programs share: the pictures they may show, and the checks of the page."""
