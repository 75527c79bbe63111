"""Parts of the store benchmark: each module times some subjects and yields rows of the same columns."""
