"""`puna eval`: perplexity and multiple choice with the definitions of lm-eval, and metrics of classifiers.

`harness` lets lm-eval run a model of puna; its numbers equal those of this package.
"""
