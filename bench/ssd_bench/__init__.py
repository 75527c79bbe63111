"""Parts of the comparison of backends for the SSD tier: the backends, what they cost, churn, opening."""
