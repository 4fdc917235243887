"""Interface of ``import coreset`` for other programs, over the same code as the verbs."""
