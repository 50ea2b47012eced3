//! Serves the f-gram table over gRPC streams.
