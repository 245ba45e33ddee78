"""The exact small worlds of the theory, their one trainer, and estimators tried on them."""
