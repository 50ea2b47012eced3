//! What breaks, when, and for how long: all of it by a seed.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use scone_proto::embed::v1::LookupRows;
use scone_test_support::Behaviour;
use turmoil::Sim;

use crate::{network::Names, servers::Replica};

/// The host of the client.
pub const CLIENT: &str = "client";

/// Something that happens to a replica.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The process is gone, its connections are reset.
    Crash,
    /// What is sent between it and the client is lost.
    BlackHole,
    /// What is sent between them arrives when the fault is over.
    Hold,
    /// What is sent takes so long, in ms.
    Slow(u64),
    /// It reads look-ups and does not answer them.
    Silent,
    /// It refuses so many look-ups, and names this delay in ms.
    Full(u64, u32),
    /// Its answers are for another version.
    WrongVersion,
    /// Its answers lack the last row.
    RowMissing,
    /// Its answers are for fewer positions.
    TooShort,
    /// It ends its streams in good order.
    EndStreams,
    /// Its name stands for it no more.
    Unnamed,
    /// It has a new version and keeps the old one.
    NewVersion,
    /// It has a new version only.
    NewVersionAlone,
    /// It goes back to the old version, and knows no other.
    OldVersionAlone,
}

/// A fault of one replica from one moment to another.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Which replica.
    pub replica: usize,
    /// What happens.
    pub fault: Fault,
    /// From when.
    pub from: Duration,
    /// Until when.
    pub until: Duration,
}

/// Draws the faults of a run: up to twelve, any of which may overlap, in a time of `length`.
pub fn draw(rng: &mut ChaCha8Rng, replicas: usize, length: Duration) -> Vec<Event> {
    let count = rng.random_range(1..=12);
    let ms = length.as_millis() as u64;
    let mut events: Vec<Event> = (0..count)
        .map(|_| {
            let from = rng.random_range(0..ms);
            let until = rng.random_range(from..=ms);
            Event {
                replica: rng.random_range(0..replicas),
                fault: fault(rng),
                from: Duration::from_millis(from),
                until: Duration::from_millis(until),
            }
        })
        .collect();
    events.sort_by_key(|event| event.from);
    events
}

fn fault(rng: &mut ChaCha8Rng) -> Fault {
    match rng.random_range(0..14) {
        0 => Fault::Crash,
        1 => Fault::BlackHole,
        2 => Fault::Hold,
        3 => Fault::Slow(rng.random_range(1..300)),
        4 => Fault::Silent,
        5 => Fault::Full(rng.random_range(1..50), rng.random_range(0..400)),
        6 => Fault::WrongVersion,
        7 => Fault::RowMissing,
        8 => Fault::TooShort,
        9 => Fault::EndStreams,
        10 => Fault::Unnamed,
        11 => Fault::NewVersion,
        12 => Fault::NewVersionAlone,
        _ => Fault::OldVersionAlone,
    }
}

/// Replicas and the name that stands for them.
pub struct Scene<'a> {
    /// All replicas.
    pub replicas: &'a [Replica],
    /// Where they listen.
    pub addresses: Vec<SocketAddr>,
    /// The name of those that are named.
    pub names: Names,
    named: Vec<bool>,
}

impl<'a> Scene<'a> {
    /// All are named.
    pub fn new(sim: &Sim<'_>, replicas: &'a [Replica]) -> Self {
        let scene = Self {
            replicas,
            addresses: replicas.iter().map(|r| r.address(sim)).collect(),
            names: Names::default(),
            named: vec![true; replicas.len()],
        };
        scene.names.set(scene.addresses.clone());
        scene
    }

    /// A fault begins.
    pub fn begin(&mut self, sim: &mut Sim<'_>, event: &Event) {
        let replica = &self.replicas[event.replica];
        let (name, service) = (replica.name.as_str(), &replica.service);
        let [old, new] = &replica.versions;
        match event.fault {
            Fault::Crash => {
                if sim.is_host_running(name) {
                    sim.crash(name);
                }
            }
            Fault::BlackHole => sim.partition(CLIENT, name),
            Fault::Hold => sim.hold(CLIENT, name),
            Fault::Slow(ms) => sim.set_link_latency(CLIENT, name, Duration::from_millis(ms)),
            Fault::Silent => service.behave(Behaviour::Silent),
            Fault::Full(times, retry_delay_ms) => service.behave(Behaviour::Exhausted {
                times,
                retry_delay_ms,
            }),
            Fault::WrongVersion => service.behave(changed(|rows| {
                rows.table_id.push('x');
            })),
            Fault::RowMissing => service.behave(changed(|rows| {
                rows.rows.truncate(rows.rows.len().saturating_sub(1));
            })),
            Fault::TooShort => service.behave(changed(|rows| {
                let lengths = &mut rows.match_lengths;
                lengths.truncate(lengths.len().saturating_sub(1));
            })),
            Fault::EndStreams => service.end_streams(),
            Fault::Unnamed => self.name(event.replica, false),
            Fault::NewVersion => service.serve_tables(&[new.clone(), old.clone()]),
            Fault::NewVersionAlone => service.serve_tables(std::slice::from_ref(new)),
            Fault::OldVersionAlone => service.serve_tables(std::slice::from_ref(old)),
        }
    }

    /// A fault is over. Table versions stay.
    pub fn end(&mut self, sim: &mut Sim<'_>, event: &Event) {
        let replica = &self.replicas[event.replica];
        let name = replica.name.as_str();
        match event.fault {
            Fault::Crash => {
                if !sim.is_host_running(name) {
                    sim.bounce(name);
                }
            }
            Fault::BlackHole => sim.repair(CLIENT, name),
            Fault::Hold => sim.release(CLIENT, name),
            Fault::Slow(_) => sim.set_link_latency(CLIENT, name, Duration::from_millis(1)),
            Fault::Silent
            | Fault::Full(..)
            | Fault::WrongVersion
            | Fault::RowMissing
            | Fault::TooShort => replica.service.behave(Behaviour::Answer),
            Fault::Unnamed => self.name(event.replica, true),
            Fault::EndStreams
            | Fault::NewVersion
            | Fault::NewVersionAlone
            | Fault::OldVersionAlone => {}
        }
    }

    /// Everything is as it should be: all replicas run, are reached, named, answer, and have the same
    /// version.
    pub fn heal(&mut self, sim: &mut Sim<'_>, version: usize) {
        for (at, replica) in self.replicas.iter().enumerate() {
            let name = replica.name.as_str();
            sim.repair(CLIENT, name);
            sim.release(CLIENT, name);
            sim.set_link_latency(CLIENT, name, Duration::from_millis(1));
            if !sim.is_host_running(name) {
                sim.bounce(name);
            }
            replica.service.behave(Behaviour::Answer);
            let [first, second] = [version, 1 - version].map(|at| replica.versions[at].clone());
            replica.service.serve_tables(&[first, second]);
            self.named[at] = true;
        }
        self.names.set(self.addresses.clone());
    }

    fn name(&mut self, replica: usize, named: bool) {
        self.named[replica] = named;
        let addresses = self.addresses.iter().zip(&self.named);
        let addresses = addresses.filter(|(_, named)| **named);
        self.names
            .set(addresses.map(|(address, _)| *address).collect());
    }
}

fn changed(change: impl Fn(&mut LookupRows) + Send + Sync + 'static) -> Behaviour {
    Behaviour::Changed(Arc::new(move |mut rows| {
        change(&mut rows);
        rows
    }))
}
