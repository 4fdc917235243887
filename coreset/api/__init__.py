"""What ``import coreset`` offers to other programs, over the same code as the verbs."""
