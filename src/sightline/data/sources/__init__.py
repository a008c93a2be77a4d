"""From a path, a name or Python objects to a list of labelled images, by layout."""
