"""The proto package ``kvloom.v1alpha1``."""
