"""One training loop for any causal model, and the two runs that use it: the learner's mini GPT-2 and mini-instruct."""
