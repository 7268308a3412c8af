"""dft-plugin in verl: an objective on the log-probabilities that every backend of its SFT trainer makes."""
