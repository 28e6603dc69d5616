"""The host's side of a sandbox's network: what it may reach, and who dials. Imported where it is first needed."""
