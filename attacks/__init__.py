"""From posterior and label to a membership score. Nothing here reads a file or knows a data set."""
