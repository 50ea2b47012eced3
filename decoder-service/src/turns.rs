//! Whose turn it is: a request that was refused because there was no place, and comes back when it was told
//! to, goes before those that came after it. A plain state machine: no locks, no clock.
//!
//! Without this, a client that was served and comes again at once takes the place that it has just freed,
//! and those that wait for the time they were told never find one. So requests that are refused stand in a
//! line, known by what they will have when they come back, and places are kept for it: requests without a
//! turn must leave most of them free, those with one the share of the head of the line. The line is bounded,
//! in all and for each client, and what does not come back in time loses its turn.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    net::SocketAddr,
    time::Instant,
};

use crate::client::Client;

/// Most requests in line; one more is refused without a turn.
const MOST: usize = 1024;

/// How a request that comes back is known: by its own id if it has one, else by its connection; and by
/// its API key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Turn {
    key: Option<u64>,
    name: Name,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Name {
    /// What the client calls the request; it may come back over another connection.
    Id(String),
    Connection(SocketAddr),
}

impl Turn {
    /// Of a request with this id, which is empty if the client gave none; `None` when nothing tells whose
    /// it is.
    pub fn of(key: Option<u64>, id: &str, connection: Option<SocketAddr>) -> Option<Self> {
        let name = match id {
            "" => Name::Connection(connection?),
            id => Name::Id(id.to_owned()),
        };
        Some(Self { key, name })
    }
}

/// Those who are to come back, in order of their first refusal. A refusal must cost little however long the
/// line is: most of them come when there is most to do.
#[derive(Debug)]
pub(crate) struct Turns {
    /// By their numbers, which grow.
    line: BTreeMap<u64, Absent>,
    numbers: HashMap<Turn, u64>,
    /// Places that each client's requests in line ask for.
    clients: HashMap<Client, usize>,
    /// Most of these.
    per_client: usize,
    next: u64,
    /// What all of them ask for.
    wanted: usize,
    /// When the first of them loses its turn, or before that.
    first_late: Option<Instant>,
}

#[derive(Debug)]
struct Absent {
    turn: Turn,
    client: Option<Client>,
    /// It asks for so many.
    places: usize,
    /// It loses its turn when it is not back by then.
    until: Instant,
}

impl Turns {
    /// Nobody is in line; a client may have so many places asked for there.
    pub(crate) fn new(per_client: usize) -> Self {
        Self {
            line: BTreeMap::new(),
            numbers: HashMap::new(),
            clients: HashMap::new(),
            per_client,
            next: 0,
            wanted: 0,
            first_late: None,
        }
    }

    /// Takes out those who did not come back in time.
    pub(crate) fn forget_late(&mut self, now: Instant) {
        if self.first_late.is_none_or(|late| late > now) {
            return;
        }
        let late = self.line.iter().filter(|(_, one)| one.until <= now);
        for number in late.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.remove(number);
        }
        self.first_late = self.line.values().map(|one| one.until).min();
    }

    fn remove(&mut self, number: u64) {
        if let Some(one) = self.line.remove(&number) {
            self.numbers.remove(&one.turn);
            self.wanted -= one.places;
            if let Some(Entry::Occupied(mut asked)) = one.client.map(|it| self.clients.entry(it)) {
                *asked.get_mut() -= one.places;
                if *asked.get() == 0 {
                    asked.remove();
                }
            }
        }
    }

    /// Whether a client may have a request for so many places in line beside those it has there.
    fn has_room(&self, client: Option<Client>, places: usize) -> bool {
        let asked = client.and_then(|client| self.clients.get(&client));
        self.line.len() < MOST && asked.unwrap_or(&0) + places <= self.per_client
    }

    fn number(&self, turn: Option<&Turn>) -> Option<u64> {
        self.numbers.get(turn?).copied()
    }

    /// How many places a request with this turn, or without one, must leave free, where `room` may wait: for
    /// all who are in line, up to three quarters of them, if it is not itself; else for those before it, up
    /// to one quarter, as most of those are still away. What the first in line asks for is kept from
    /// everybody whatever it is, so that it gets it. The rest of the places, and those of the batch, keep
    /// things going when nobody comes back.
    pub(crate) fn kept_from(&self, turn: Option<&Turn>, room: usize) -> usize {
        let number = self.number(turn);
        let most = match number {
            Some(_) => room.div_ceil(4),
            None => (room * 3).div_ceil(4),
        };
        let mut kept: usize = 0;
        let before = self.line.range(..number.unwrap_or(self.next));
        for (at, (_, one)) in before.enumerate() {
            match kept + one.places {
                sum if at == 0 || sum <= most => kept = sum.min(room),
                _ => break,
            }
        }
        kept
    }

    /// Places that those before it ask for.
    pub(crate) fn wanted_before(&self, turn: Option<&Turn>) -> usize {
        match self.number(turn) {
            Some(number) => self.line.range(..number).map(|(_, one)| one.places).sum(),
            None => self.wanted,
        }
    }

    /// A request was refused and may come back until then: it keeps its turn, or gets the last one. None
    /// where the line is full, or where the client has its share of it.
    pub(crate) fn refused(
        &mut self,
        turn: &Turn,
        client: Option<Client>,
        places: usize,
        until: Instant,
    ) {
        let number = match self.number(Some(turn)) {
            Some(number) => number,
            None if self.has_room(client, places) => self.next,
            None => return,
        };
        self.remove(number);
        self.numbers.insert(turn.clone(), number);
        if let Some(client) = client {
            *self.clients.entry(client).or_default() += places;
        }
        let turn = turn.clone();
        let absent = Absent {
            turn,
            client,
            places,
            until,
        };
        self.line.insert(number, absent);
        self.next = self.next.max(number + 1);
        self.wanted += places;
        self.first_late = Some(self.first_late.map_or(until, |late| late.min(until)));
    }

    /// A request got its places.
    pub(crate) fn served(&mut self, turn: &Turn) {
        if let Some(number) = self.number(Some(turn)) {
            self.remove(number);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use super::*;

    fn turn(number: u16) -> Turn {
        let connection = SocketAddr::from(([127, 0, 0, 1], number));
        Turn::of(None, "", Some(connection)).unwrap()
    }

    fn line(places: &[usize]) -> (Turns, Instant) {
        let (mut turns, later) = (Turns::new(8), Instant::now() + Duration::from_secs(9));
        for (number, &places) in places.iter().enumerate() {
            turns.refused(&turn(number as u16), None, places, later);
        }
        (turns, later)
    }

    #[test]
    fn places_are_kept_for_those_before_and_for_nobody_behind() {
        let (turns, _) = line(&[1; 20]);
        assert_eq!(turns.kept_from(Some(&turn(0)), 8), 0);
        assert_eq!(turns.kept_from(Some(&turn(1)), 8), 1);
        assert_eq!(turns.kept_from(Some(&turn(5)), 8), 2, "of the quarter");
        assert_eq!(turns.kept_from(Some(&turn(19)), 8), 2);
        assert_eq!(turns.kept_from(None, 8), 6, "three quarters");
        assert_eq!(turns.kept_from(Some(&turn(99)), 1), 1);
        assert_eq!(
            turns.kept_from(None, 0),
            0,
            "nobody waits, so nothing is kept"
        );
        assert_eq!(turns.wanted_before(Some(&turn(7))), 7);
        assert_eq!(turns.wanted_before(None), 20);
    }

    #[test]
    fn the_first_gets_as_many_as_it_asks_for() {
        let (turns, _) = line(&[7, 1]);
        assert_eq!(turns.kept_from(None, 8), 7);
        assert_eq!(turns.kept_from(None, 4), 4, "never more than may wait");
    }

    #[test]
    fn a_turn_is_kept_by_coming_back_and_ends_with_a_place_or_by_staying_away() {
        let (mut turns, later) = line(&[1; 3]);
        turns.refused(&turn(0), None, 1, later + Duration::from_secs(1));
        assert_eq!(turns.wanted_before(Some(&turn(1))), 1, "still the first");
        turns.served(&turn(1));
        assert_eq!(turns.wanted_before(Some(&turn(2))), 1);
        turns.forget_late(later);
        assert_eq!(turns.wanted_before(None), 1, "only the first came again");
    }

    #[test]
    fn the_line_is_bounded() {
        let (mut turns, later) = line(&vec![1; MOST]);
        turns.refused(&turn(60_000), None, 1, later);
        assert_eq!(turns.wanted_before(None), MOST);
    }

    /// As one connection that sends a thousand requests, each with an id of its own.
    #[test]
    fn a_client_has_its_share_of_the_line_and_no_more() {
        let (mut turns, later) = line(&[]);
        let (one, other) = (Some(Client::Key(1)), Some(Client::Key(2)));
        for number in 0..100 {
            turns.refused(&turn(number), one, 1, later);
        }
        assert_eq!(turns.wanted_before(None), 8);
        turns.refused(&turn(100), other, 3, later);
        assert_eq!(turns.wanted_before(None), 11, "others have theirs");
        turns.refused(&turn(3), one, 1, later);
        assert_eq!(turns.wanted_before(Some(&turn(4))), 4, "keeps its turn");
        turns.served(&turn(0));
        turns.refused(&turn(50), one, 1, later);
        assert_eq!(turns.wanted_before(Some(&turn(50))), 10);
        turns.forget_late(later);
        assert!(turns.clients.is_empty());
    }

    #[test]
    fn a_request_with_an_id_is_known_on_another_connection() {
        let one = SocketAddr::from(([127, 0, 0, 1], 1));
        let two = SocketAddr::from(([127, 0, 0, 1], 2));
        let of = |key, id, connection| Turn::of(key, id, Some(connection));
        assert_eq!(of(None, "a", one), of(None, "a", two));
        assert_ne!(of(None, "", one), of(None, "", two));
        assert_ne!(of(Some(1), "a", one), of(Some(2), "a", one), "keys differ");
        assert_eq!(Turn::of(None, "", None), None);
    }
}
