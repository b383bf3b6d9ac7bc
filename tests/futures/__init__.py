"""The standard faces over one real cluster: executor, joblib, dask and asyncio."""
