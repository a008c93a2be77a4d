"""Networks, how a config describes them, and the losses they are trained with."""
