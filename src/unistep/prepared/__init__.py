"""Networks prepared for another runtime than PyTorch's: RUNTIMES is the table, store.py the cache."""
