"""The engine named transformers: continuous batching over transformers' models, on a processor, a Mac or one GPU."""
