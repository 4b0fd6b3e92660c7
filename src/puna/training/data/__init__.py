"""Training data: from files, hub data sets or objects in memory to tokenised examples.

`readers/` opens data of every kind as `Rows`; `layouts/` turns a row into a document with the characters to learn;
`tokenization` turns documents into examples; `dataset` stores them; `packing` chooses the documents of a forward pass.
"""
