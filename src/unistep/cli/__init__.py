"""The command line: one file a command. A command imports what it needs only when it runs."""
