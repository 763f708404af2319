"""manyfit in Hydra: the launcher `fused`, the sweepers `grid` and `optuna_study`."""
