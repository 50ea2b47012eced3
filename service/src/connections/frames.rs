//! Clients that flood a connection with frames which ask for nothing. h2 bounds what most of them take in
//! memory, and resets; a WINDOW_UPDATE costs it only time, and it counts none.
//!
//! So frames are counted as they come: the few bytes before each say what it is. Those that carry a request
//! are free, as requests have bounds of their own. All others are paid for by the time that passes and by
//! what the server sends: a client answers what it gets with a WINDOW_UPDATE or two, and floods answer
//! nothing. (Envoy bounds WINDOW_UPDATEs by the DATA frames that it has sent.)

use std::time::Instant;

/// What a client sends before its first frame.
const PREFACE_BYTES: usize = 24;

/// Before the payload of each frame: its length in three bytes, what it is, flags, and the stream.
const HEAD_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;

/// Most frames that come at once.
const BURST: f64 = 10_000.0;

/// Frames a second besides.
const PER_SECOND: f64 = 5_000.0;

/// Bytes sent for each frame besides. The smallest message has more in its frame, and a client has no reason
/// to answer one with more than two.
const BYTES_SENT: f64 = 32.0;

/// The frames of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    /// Bytes of the preface or of a payload that are still to come.
    skip: usize,
    head: [u8; HEAD_BYTES],
    /// Bytes of the head that are there.
    begun: usize,
    /// Frames that may come now.
    left: f64,
    counted: Instant,
}

impl Frames {
    /// Of a connection over which nothing has come yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; HEAD_BYTES],
            begun: 0,
            left: BURST,
            counted: now,
        }
    }

    /// So many bytes were sent.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.left = (self.left + bytes as f64 / BYTES_SENT).min(BURST);
    }

    /// These bytes came; whether there are too many frames among them and those before.
    pub(super) fn came(&mut self, bytes: &[u8], now: Instant) -> bool {
        let frames = self.count(bytes);
        if frames == 0 {
            return false;
        }
        let passed = now.saturating_duration_since(self.counted).as_secs_f64();
        self.counted = now;
        self.left = (self.left + passed * PER_SECOND).min(BURST) - frames as f64;
        self.left < 0.0
    }

    /// Frames that begin in these bytes and carry nothing of a request.
    fn count(&mut self, mut bytes: &[u8]) -> usize {
        let mut count = 0;
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let more = bytes.len().min(HEAD_BYTES - self.begun);
            self.head[self.begun..self.begun + more].copy_from_slice(&bytes[..more]);
            self.begun += more;
            bytes = &bytes[more..];
            if self.begun == HEAD_BYTES {
                let [a, b, c, kind, ..] = self.head;
                self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
                self.begun = 0;
                let carries = kind == HEADERS || kind == DATA && self.skip > 0;
                count += usize::from(!carries);
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = (payload as u32).to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, 0, 0, 0, 0, 1];
        frame.resize(HEAD_BYTES + payload, 8);
        frame
    }

    fn begun() -> (Frames, Instant) {
        let now = Instant::now();
        let mut frames = Frames::new(now);
        assert!(!frames.came(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", now));
        (frames, now)
    }

    #[test]
    fn frames_that_carry_nothing_are_found_however_bytes_are_cut() {
        let all = [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            frame(WINDOW_UPDATE, 4),
            frame(HEADERS, 70),
            frame(DATA, 16_384),
            frame(DATA, 0),
            frame(6, 8),
            frame(DATA, 3),
            frame(4, 0),
        ]
        .concat();
        for size in 1..100 {
            let mut frames = Frames::new(Instant::now());
            let counts = all.chunks(size).map(|bytes| frames.count(bytes));
            assert_eq!(counts.sum::<usize>(), 4, "chunks of {size}");
        }
    }

    #[test]
    fn a_flood_is_too_much_and_the_same_over_time_is_not() {
        let updates = frame(WINDOW_UPDATE, 4).repeat(1000);
        let (mut frames, now) = begun();
        for _ in 0..10 {
            assert!(!frames.came(&updates, now));
        }
        assert!(frames.came(&updates, now));
        let (mut frames, mut now) = begun();
        for _ in 0..1000 {
            now += Duration::from_millis(200);
            assert!(!frames.came(&updates, now));
        }
    }

    #[test]
    fn answers_pay_for_what_a_client_says_about_them() {
        let (mut frames, now) = begun();
        let two = frame(WINDOW_UPDATE, 4).repeat(2);
        for _ in 0..100_000 {
            frames.sent(64);
            assert!(!frames.came(&two, now));
        }
        let ping = frame(6, 8);
        let too_many = (0..100_000).any(|_| {
            // Its answer.
            frames.sent(ping.len());
            frames.came(&ping, now)
        });
        assert!(too_many, "pings do not pay for themselves");
    }

    #[test]
    fn requests_are_free() {
        let (mut frames, now) = begun();
        let requests = [frame(HEADERS, 70), frame(DATA, 40)].concat();
        for _ in 0..100_000 {
            assert!(!frames.came(&requests, now));
        }
    }
}
