//! What both services share: logs, shutdown, metrics endpoint, gRPC server settings.
