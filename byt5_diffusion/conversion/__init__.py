"""Roads in and out for weights of other programs."""
