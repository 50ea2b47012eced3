//! A client of HTTP/2 that keeps to nothing: frames as they are, written by hand, for tests of what a server
//! takes from it. The real clients' libraries would not send these.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Notify,
    task::JoinHandle,
    time::timeout,
};

/// How long the server may take no byte before the rest of what is sent stays unsent.
const DEAF: Duration = Duration::from_secs(1);

/// Largest payload of a frame without asking.
const FRAME_BYTES: usize = 16 << 10;

/// What every window begins with.
const DEFAULT_WINDOW: i64 = 65_535;

/// The setting that says what those of streams begin with.
const INITIAL_WINDOW: [u8; 2] = [0, 4];

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What came over a connection.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Bytes of answers.
    pub data_bytes: usize,
    /// Streams that the server reset, by the reason it gave.
    pub reset: BTreeMap<i64, usize>,
    /// Heads of answers, and trailers.
    pub headers: usize,
    /// The server told the connection to end.
    pub told_to_go: bool,
    /// It is closed.
    pub closed: bool,
}

/// What the connection's other side said.
#[derive(Debug)]
struct Incoming {
    seen: Mutex<Seen>,
    room: Mutex<Room>,
    /// Told when there is more.
    more_room: Notify,
    /// Whether what comes is left in the socket.
    deaf: AtomicBool,
}

/// How much the server has room for.
#[derive(Debug)]
struct Room {
    connection: i64,
    /// Of each stream, what it got beyond what streams begin with.
    streams: HashMap<u32, i64>,
    initial: i64,
    /// Whether the server's settings came.
    settled: bool,
    /// Streams that the server takes nothing for any more.
    reset: HashSet<u32>,
}

/// A connection. What comes is read and counted, unless it is told to read nothing.
#[derive(Debug)]
pub struct RawClient {
    out: OwnedWriteHalf,
    incoming: Arc<Incoming>,
    reading: JoinHandle<()>,
    next_stream: u32,
}

impl RawClient {
    /// Connects; streams begin with room for `window` bytes of their answers.
    ///
    /// # Panics
    /// When nobody listens there.
    pub async fn connect(address: &str, window: u32) -> Self {
        let stream = TcpStream::connect(address).await.expect("connect");
        let (input, out) = stream.into_split();
        let incoming = Arc::new(Incoming {
            seen: Mutex::default(),
            room: Mutex::new(Room {
                connection: DEFAULT_WINDOW,
                streams: HashMap::new(),
                initial: DEFAULT_WINDOW,
                settled: false,
                reset: HashSet::new(),
            }),
            more_room: Notify::new(),
            deaf: AtomicBool::new(false),
        });
        let reading = tokio::spawn(read(input, Arc::clone(&incoming)));
        let mut client = Self {
            out,
            incoming,
            reading,
            next_stream: 1,
        };
        let mut hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let settings = [&INITIAL_WINDOW[..], &window.to_be_bytes()].concat();
        frame(&mut hello, SETTINGS, 0, 0, &settings);
        // Room for the answers of all streams together.
        frame(&mut hello, WINDOW_UPDATE, 0, 0, &(1u32 << 30).to_be_bytes());
        assert!(client.send(&hello).await, "a server that reads nothing");
        while !lock(&client.incoming.room).settled {
            let more = timeout(DEAF, client.incoming.more_room.notified()).await;
            more.expect("the server's settings");
        }
        // What the server has room for holds from here on.
        let mut settled = Vec::new();
        frame(&mut settled, SETTINGS, ACK, 0, &[]);
        client.send(&settled).await;
        client
    }

    /// What came so far.
    pub fn seen(&self) -> Seen {
        lock(&self.incoming.seen).clone()
    }

    /// Leaves what comes from now on in the socket.
    pub fn read_nothing(&self) {
        self.incoming.deaf.store(true, Ordering::Relaxed);
    }

    /// Opens a stream with the head of a gRPC call; its number.
    pub fn open(&mut self, frames: &mut Vec<u8>, path: &str) -> u32 {
        let stream = self.next_stream;
        self.next_stream += 2;
        frame(frames, HEADERS, END_HEADERS, stream, &head(path));
        stream
    }

    /// Sends frames; false when the server takes no more of them, or has closed the connection.
    pub async fn send(&mut self, mut frames: &[u8]) -> bool {
        while !frames.is_empty() {
            match timeout(DEAF, self.out.write(frames)).await {
                Ok(Ok(sent)) => frames = &frames[sent..],
                Ok(Err(_)) | Err(_) => return false,
            }
        }
        true
    }

    /// Sends bytes of a call as the server has room for them; how many, when it has none any more.
    pub async fn send_data(&mut self, stream: u32, bytes: &[u8]) -> usize {
        let mut sent = 0;
        while sent < bytes.len() && !lock(&self.incoming.room).reset.contains(&stream) {
            let room = self.take_room(stream, FRAME_BYTES.min(bytes.len() - sent));
            if room == 0 {
                let more = self.incoming.more_room.notified();
                if timeout(DEAF, more).await.is_err() {
                    break;
                }
                continue;
            }
            let mut frames = Vec::new();
            frame(&mut frames, DATA, 0, stream, &bytes[sent..sent + room]);
            if !self.send(&frames).await {
                break;
            }
            sent += room;
        }
        sent
    }

    /// Says that no more bytes of a call come.
    pub async fn end(&mut self, stream: u32) -> bool {
        let mut frames = Vec::new();
        frame(&mut frames, DATA, END_STREAM, stream, &[]);
        self.send(&frames).await
    }

    fn take_room(&self, stream: u32, most: usize) -> usize {
        let mut room = lock(&self.incoming.room);
        let of_stream = room.initial + room.streams.get(&stream).copied().unwrap_or(0);
        let taken = of_stream.min(room.connection).clamp(0, most as i64);
        room.connection -= taken;
        *room.streams.entry(stream).or_default() -= taken;
        taken as usize
    }

    /// Begins a call and sends the whole of its one message.
    pub async fn call(&mut self, path: &str, message: &[u8]) -> bool {
        let mut frames = Vec::new();
        let stream = self.open(&mut frames, path);
        data(&mut frames, stream, &grpc(message), true);
        self.send(&frames).await
    }
}

impl Drop for RawClient {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// A message as gRPC sends it.
pub fn grpc(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a small message");
    [&[0][..], &length.to_be_bytes(), message].concat()
}

/// Frames with the bytes of a call.
pub fn data(frames: &mut Vec<u8>, stream: u32, bytes: &[u8], ends: bool) {
    let count = bytes.chunks(FRAME_BYTES).count();
    for (at, chunk) in bytes.chunks(FRAME_BYTES).enumerate() {
        let flags = if ends && at + 1 == count {
            END_STREAM
        } else {
            0
        };
        frame(frames, DATA, flags, stream, chunk);
    }
}

/// More room for the answers of a stream, or of all.
pub fn window_update(frames: &mut Vec<u8>, stream: u32, bytes: u32) {
    frame(frames, WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes());
}

fn frame(frames: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).expect("a small frame");
    frames.extend(&length.to_be_bytes()[1..]);
    frames.extend([kind, flags]);
    frames.extend(stream.to_be_bytes());
    frames.extend(payload);
}

/// The head of a gRPC call: fields by their numbers in HPACK's table, or written out, never
/// remembered.
fn head(path: &str) -> Vec<u8> {
    let mut head = vec![0x83, 0x86]; // POST, http
    let mut literal = |name: &[u8], value: &str| {
        head.extend(name);
        head.push(u8::try_from(value.len()).expect("a short value"));
        head.extend(value.as_bytes());
    };
    literal(&[0x04], path);
    literal(&[0x01], "localhost");
    literal(&[0x0f, 0x10], "application/grpc");
    literal(b"\x00\x02te", "trailers");
    head
}

async fn read(mut input: OwnedReadHalf, incoming: Arc<Incoming>) {
    let mut payload = Vec::new();
    loop {
        while incoming.deaf.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut header = [0; 9];
        let read = async {
            input.read_exact(&mut header).await?;
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]) as usize;
            payload.resize(length, 0);
            input.read_exact(&mut payload).await
        };
        if read.await.is_err() {
            lock(&incoming.seen).closed = true;
            return;
        }
        let stream = u32::from_be_bytes([header[5], header[6], header[7], header[8]]);
        incoming.note(header[3], stream, &payload);
    }
}

impl Incoming {
    fn note(&self, kind: u8, stream: u32, payload: &[u8]) {
        let mut seen = lock(&self.seen);
        match kind {
            DATA => seen.data_bytes += payload.len(),
            HEADERS => seen.headers += 1,
            RST_STREAM => {
                *seen.reset.entry(number(payload)).or_default() += 1;
                lock(&self.room).reset.insert(stream);
                self.more_room.notify_one();
            }
            GOAWAY => seen.told_to_go = true,
            SETTINGS => {
                let mut room = lock(&self.room);
                for setting in payload.chunks_exact(6) {
                    if setting[..2] == INITIAL_WINDOW {
                        room.initial = number(&setting[2..]);
                    }
                }
                room.settled = true;
                self.more_room.notify_one();
            }
            WINDOW_UPDATE => {
                let mut room = lock(&self.room);
                match stream {
                    0 => room.connection += number(payload),
                    _ => *room.streams.entry(stream).or_default() += number(payload),
                }
                self.more_room.notify_one();
            }
            _ => {}
        }
    }
}

fn number(bytes: &[u8]) -> i64 {
    bytes
        .iter()
        .fold(0, |sum, byte| (sum << 8) + i64::from(*byte))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
