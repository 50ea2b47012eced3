//! The SCONE transformer: main model, f-gram model, KV cache, sampling, checkpoints.
