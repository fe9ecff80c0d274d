"""The running parts: a stream into the journal, a forwarder to each sink, their threads, and the supervisor of all."""
