"""Drop-ins for diffusers' `ConsistencyModelPipeline` and `CMStochasticIterativeScheduler`: their contract alone."""
