//! All tests that start the real binaries. One test binary: it links once and makes the fixtures once.

#![allow(clippy::unwrap_used, reason = "tests")]

mod suite {
    mod adapters;
    mod bad_requests;
    mod broken_files;
    mod clients;
    mod clock;
    mod embed_tier_down;
    mod fairness;
    mod faults;
    mod generate;
    mod health;
    mod hostile;
    mod keys;
    mod lookup;
    mod mapped;
    mod overload;
    mod page;
    mod same_tokens;
    mod scaling;
    mod served_files;
    mod shutdown;
    mod start;
    mod table_switch;
    mod tables;
    mod tls;
    mod traces;
    mod training;
    mod upsert;
}
