"""The service: one application core (:mod:`.service`) under thin edges, and the ``kvloom`` command."""
