//! Do the manifests in k8s/ fit Kubernetes' API, each other, and the programs? No cluster is asked.
//!
//! Every kustomization is rendered by `kubectl kustomize` where kubectl is installed. Without it the
//! files are read one by one, and only kustomizations that change nothing are checked as a whole. Flags,
//! variables, ports, health names and metrics are compared with what the binaries say themselves.
#![allow(clippy::unwrap_used, reason = "tests")]

mod dockerfile;
mod help;
mod limits;
mod mistakes;
mod monitoring;
mod objects;
mod pods;
mod policies;
mod programs;
mod quantity;
mod render;
mod running;
mod secrets;
mod services;
mod suite;
mod workloads;
