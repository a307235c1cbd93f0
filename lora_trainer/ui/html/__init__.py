"""HTML of the page, apart from its widgets."""
