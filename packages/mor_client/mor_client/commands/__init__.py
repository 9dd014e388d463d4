"""Commands of ``mor``, one file per resource."""
