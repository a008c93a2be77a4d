"""The subcommands of the `sightline` command line, one module each.

Every module defines `main(argv)`, which returns the exit code, and imports torch only when it computes something."""
