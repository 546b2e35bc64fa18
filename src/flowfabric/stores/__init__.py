"""Where records live. No rule lives here."""
