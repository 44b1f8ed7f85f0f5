"""What is believed to be corrected: the ledger, and what is derived from it to decide and to route."""
