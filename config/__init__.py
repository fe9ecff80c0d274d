"""The configuration: what can be set (`settings`), where it comes from (`sources`), and how it is put together (`load`)."""
