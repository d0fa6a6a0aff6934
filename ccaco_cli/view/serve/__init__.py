"""The search page of an index and its JSON API (``ccaco retrieve --serve``)."""
