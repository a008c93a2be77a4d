"""The command line, one small module a command. Each has `main(words) -> exit code` and imports torch only to
compute."""
