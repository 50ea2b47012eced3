//! The client of the embedding tier: token ids in, f-gram rows out, over gRPC.
//!
//! ```text
//! EmbedClient ── names (DNS, files) ──> replicas × shards, each kept connected with one stream
//!    lookup: split by shard ──> one replica each (again elsewhere on failure, twice when late)
//!            ──> checked answers ──> rows decoded, each to its position
//! ```
//!
//! Every address behind a name is a replica; names are resolved again and again, so replicas that
//! come get work and those that go lose it without a failed look-up. A step becomes one message for
//! each shard that owns a position of it, a prompt several, all under way at once. A message that
//! fails is sent again to another replica within `Options::timeout`; one that is later than the
//! recent 99th percentile is sent to a second replica as well, at most 5 times in 100.
//!
//! Servers may have several tables by name ([`EmbedClient::table`]); a step in several of them becomes
//! messages for each, all under way at once ([`EmbedClient::lookup_all`]). Tables come and go.
//!
//! The servers may be switched to a new version of the table while they run. Work that belongs
//! together names one version all along; [`EmbedClient::current`] moves on once all replicas have.
//!
//! ```no_run
//! use scone_embed_client::{Answers, EmbedClient, LookupBatch, Options};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = EmbedClient::connect(Options::new(vec!["127.0.0.1:7300".parse()?])).await?;
//! let table = client.current();
//! println!("{} elements a row, f-grams of up to {} tokens", table.dim, table.max_n);
//!
//! // A text of four tokens, and one more token of another text with two ids of context.
//! let mut batch = LookupBatch::default();
//! batch.push(&[262, 1917, 290, 11], 0);
//! batch.push(&[318, 257, 1332], 2);
//! let mut answers = Answers::default();
//! client.lookup(&table, &batch, &mut answers).await;
//! if let Some(error) = answers.error() {
//!     return Err(error.clone().into());
//! }
//! let mut embedding = vec![0.0f32; table.dim as usize];
//! for position in 0..batch.positions() {
//!     match answers.row(position) {
//!         None => println!("{position}: no f-gram ends here, use the token embedding"),
//!         Some(row) => {
//!             row.decode(&mut embedding)?;
//!             let length = answers.match_lengths()[position];
//!             println!("{position}: {length} tokens, row {embedding:?}");
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What it is not: it holds no model, and knows nothing of token embeddings, which are what belongs
//! at positions without a match.

mod address;
mod ask;
mod batch;
mod chance;
mod client;
mod endpoint;
mod error;
mod facts;
mod link;
mod members;
mod options;
mod pace;
mod parts;
mod pool;
mod replica;
mod view;

pub use address::{Address, Resolve, SystemResolver};
pub use batch::{Answers, LookupBatch, LookupTrace};
pub use client::{EmbedClient, Monitor};
pub use endpoint::{Open, Tcp, connect, endpoint};
pub use error::{ConnectError, LookupError};
pub use facts::{Incompatible, ModelFacts, TableFacts};
pub use options::{Options, Tls};
pub use pool::Stats;
