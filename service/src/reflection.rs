//! gRPC server reflection: clients learn the protos from the server.

use tonic::service::Routes;
use tonic_reflection::server::{Builder, Error};

use crate::guard::MessageBudget;

/// Adds reflection of `service_name` and of the health service to routes. `descriptors` is an
/// encoded descriptor set that holds the service; what else it holds is not listed.
///
/// Both versions of the protocol are served: Python's grpcio-reflection and older grpcurl know
/// only `v1alpha`.
///
/// # Errors
/// When `descriptors` is not a descriptor set.
pub fn with_reflection(
    routes: Routes,
    descriptors: &[u8],
    service_name: &str,
    budget: &MessageBudget,
) -> Result<Routes, Error> {
    let builder = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name(service_name)
            .with_service_name("grpc.health.v1.Health")
    };
    Ok(routes
        .add_service(budget.guard(builder().build_v1()?))
        .add_service(budget.guard(builder().build_v1alpha()?)))
}
