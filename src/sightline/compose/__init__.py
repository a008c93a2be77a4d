"""From a config to a run: the parts a config describes, the session around them, and what is written. The only package
that knows every part below it."""
