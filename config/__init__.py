"""The configuration: its keys (`settings`), its sources (`layers`), and loading it (`load`)."""
