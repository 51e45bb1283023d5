"""How good a network is: the confusion matrix, the protocol, the tables of scores."""
