"""Many runs under one parent: grids, searches, and the report on them."""
