"""From files and known sets to tensors: a table, and its splits in the order in which they are visited."""
