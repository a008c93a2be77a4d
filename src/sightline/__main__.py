"""Runs the `sightline` command as `python -m sightline`."""

from sightline.cli import main

if __name__ == "__main__":
    main()
