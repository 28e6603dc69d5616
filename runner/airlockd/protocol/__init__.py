"""The wire between host and guest, and between `airlock exec` and the session. Both sides import it."""
