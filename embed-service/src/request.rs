//! From a wire request to a checked one. Nothing is looked up before all of it is checked.

use prost::Message as _;
use scone_fgram::table::Span;
use scone_proto::embed::v1::{LookupRequest, Span as WireSpan};

use crate::error::Error;

/// The most a request may ask for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Bytes of the encoded request.
    pub max_request_bytes: u64,
    /// Spans.
    pub max_spans: u32,
    /// Token ids, context included.
    pub max_positions: u32,
}

/// A request the table can answer.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Query {
    /// Ids of all spans, end to end.
    pub ids: Vec<u32>,
    /// The spans; they cover `ids` exactly.
    pub spans: Vec<Span>,
}

impl Limits {
    /// Checks the sizes, which bound the work of every further check.
    ///
    /// # Errors
    /// The first field that is too large, with its limit.
    pub(crate) fn check(&self, request: &LookupRequest) -> Result<(), Error> {
        let bytes = request.encoded_len();
        if bytes as u64 > self.max_request_bytes {
            let limit = self.max_request_bytes;
            return Err(Error::RequestTooLarge { bytes, limit });
        }
        let ids = request.token_ids.len() / 4;
        if ids > self.max_positions as usize {
            let limit = self.max_positions;
            return Err(Error::TooManyPositions { ids, limit });
        }
        let spans = request.spans.len();
        if spans > self.max_spans as usize {
            let limit = self.max_spans;
            return Err(Error::TooManySpans { spans, limit });
        }
        Ok(())
    }
}

impl Query {
    /// Reads a request whose sizes are within the limits.
    ///
    /// # Errors
    /// The first field that is malformed.
    pub(crate) fn read(request: &LookupRequest, vocab_size: u32) -> Result<Self, Error> {
        let ids = read_ids(&request.token_ids, vocab_size)?;
        let spans = read_spans(&request.spans, ids.len())?;
        Ok(Self { ids, spans })
    }

    /// Positions to answer.
    #[must_use]
    pub(crate) fn answers(&self) -> usize {
        self.spans.iter().map(|span| span.answers as usize).sum()
    }
}

fn read_ids(bytes: &[u8], vocab_size: u32) -> Result<Vec<u32>, Error> {
    let (ids, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        let bytes = bytes.len();
        return Err(Error::PartialTokenId { bytes });
    }
    let ids: Vec<u32> = ids.iter().map(|id| u32::from_le_bytes(*id)).collect();
    match ids.iter().position(|&id| id >= vocab_size) {
        None => Ok(ids),
        Some(index) => Err(Error::TokenIdOutOfRange {
            index,
            id: ids[index],
            vocab_size,
        }),
    }
}

fn read_spans(wire: &[WireSpan], ids: usize) -> Result<Vec<Span>, Error> {
    if wire.is_empty() {
        return Err(Error::NoSpans);
    }
    let mut covered = 0_u64;
    let mut spans = Vec::with_capacity(wire.len());
    for (index, span) in wire.iter().enumerate() {
        if span.answers == 0 {
            return Err(Error::NoAnswers { index });
        }
        covered += u64::from(span.context) + u64::from(span.answers);
        spans.push(Span {
            context: span.context,
            answers: span.answers,
        });
    }
    if covered != ids as u64 {
        return Err(Error::SpansDoNotCover { covered, ids });
    }
    Ok(spans)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    const VOCAB: u32 = 10;
    const LIMITS: Limits = Limits {
        max_request_bytes: 1000,
        max_spans: 3,
        max_positions: 8,
    };

    fn request(ids: &[u32], spans: &[(u32, u32)]) -> LookupRequest {
        let span = |&(context, answers): &(u32, u32)| WireSpan { context, answers };
        LookupRequest {
            id: 1,
            token_ids: ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
            spans: spans.iter().map(span).collect(),
            table_id: None,
            table: String::new(),
            traceparent: String::new(),
        }
    }

    fn check(request: &LookupRequest) -> Result<Query, Error> {
        LIMITS.check(request)?;
        Query::read(request, VOCAB)
    }

    fn refusal(request: &LookupRequest) -> String {
        let error = check(request).unwrap_err();
        assert_eq!(error.code(), tonic::Code::InvalidArgument);
        error.to_string()
    }

    #[test]
    fn accepts_at_the_limits() {
        let query = check(&request(
            &[9, 1, 2, 3, 4, 5, 6, 0],
            &[(1, 1), (0, 1), (2, 3)],
        ));
        let query = query.unwrap();
        assert_eq!(query.ids, [9, 1, 2, 3, 4, 5, 6, 0]);
        assert_eq!((query.spans[2].context, query.spans[2].answers), (2, 3));
    }

    #[test]
    fn refuses_beyond_the_limits() {
        let too_many = refusal(&request(&[1; 9], &[(0, 9)]));
        assert_eq!(
            too_many,
            "token_ids has 9 ids, the limit is max_positions = 8"
        );
        let spans = refusal(&request(&[1; 4], &[(0, 1); 4]));
        assert_eq!(spans, "spans has 4 entries, the limit is max_spans = 3");
        let id = refusal(&request(&[1, 10], &[(0, 2)]));
        assert_eq!(id, "token_ids[1] is 10, the limit is vocab_size - 1 = 9");
    }

    #[test]
    fn limits_the_encoded_size() {
        let mut request = request(&[1], &[(0, 1)]);
        request.table_id = Some(String::new());
        let rest = request.encoded_len();
        // Two more bytes of length prefix above 127.
        request.table_id = Some("x".repeat(1000 - rest - 1));
        assert_eq!(request.encoded_len(), 1000);
        assert!(check(&request).is_ok());
        request.table_id = Some("x".repeat(1001 - rest - 1));
        let refusal = refusal(&request);
        assert_eq!(
            refusal,
            "the request has 1001 bytes, the limit is max_request_bytes = 1000"
        );
    }

    #[test]
    fn refuses_malformed_fields() {
        let mut partial = request(&[1, 2], &[(0, 2)]);
        partial.token_ids.truncate(7);
        assert!(refusal(&partial).starts_with("token_ids has 7 bytes"));
        assert!(refusal(&request(&[], &[])).starts_with("spans is empty"));
        let none = refusal(&request(&[1], &[(1, 0)]));
        assert_eq!(none, "spans[0].answers is 0, at least 1 is needed");
        for spans in [&[(0, 1)][..], &[(0, 3)], &[(u32::MAX, u32::MAX); 3]] {
            assert!(refusal(&request(&[1, 2], spans)).starts_with("spans cover "));
        }
    }

    /// A request of any field values, most of them wrong.
    fn any_request() -> impl Strategy<Value = LookupRequest> {
        let number = prop_oneof![0..4_u32, any::<u32>()];
        let spans = prop::collection::vec((number.clone(), number), 0..6);
        let token_ids = prop::collection::vec(any::<u8>(), 0..40);
        let table_id = prop::option::of(".{0,40}");
        let fields = (any::<u64>(), token_ids, spans, table_id);
        fields.prop_map(|(id, token_ids, spans, table_id)| LookupRequest {
            id,
            token_ids: token_ids.into(),
            table_id,
            ..request(&[], &spans)
        })
    }

    /// A request whose spans cover its ids; one in a few is still beyond a limit.
    fn likely_request() -> impl Strategy<Value = LookupRequest> {
        let spans = prop::collection::vec((0..3_u32, 1..3_u32), 1..5);
        let ids = prop::collection::vec(prop_oneof![20 => 0..VOCAB, 1 => any::<u32>()], 20);
        (spans, ids).prop_map(|(spans, ids)| {
            let covered: u32 = spans
                .iter()
                .map(|(context, answers)| context + answers)
                .sum();
            request(&ids[..covered as usize], &spans)
        })
    }

    /// What is accepted is exactly what the table can answer, and takes no more memory than its
    /// message did.
    fn is_refused_or_sound(request: &LookupRequest) {
        let Ok(query) = check(request) else { return };
        assert!(query.ids.len() <= LIMITS.max_positions as usize);
        assert!(query.ids.capacity() * 4 <= request.token_ids.len());
        assert_eq!(query.spans.capacity(), request.spans.len());
        assert!(query.ids.iter().all(|&id| id < VOCAB));
        assert!(query.spans.len() <= LIMITS.max_spans as usize);
        let spans = query.spans.iter();
        let covered: usize = spans.map(|s| (s.context + s.answers) as usize).sum();
        assert_eq!(covered, query.ids.len());
        assert!((1..=query.ids.len()).contains(&query.answers()));
    }

    proptest! {
        #[test]
        fn any_field_values_are_refused_or_sound(
            request in prop_oneof![any_request(), likely_request()],
        ) {
            is_refused_or_sound(&request);
        }

        /// Bytes of an attacker: noise, and a real request with a few bytes changed.
        #[test]
        fn any_bytes_are_refused_or_sound(
            noise in prop::collection::vec(any::<u8>(), 0..300),
            real in likely_request(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut changed = real.encode_to_vec();
            for (at, byte) in changes {
                if !changed.is_empty() {
                    let at = at.index(changed.len());
                    changed[at] = byte;
                }
            }
            for bytes in [noise, changed] {
                if let Ok(request) = LookupRequest::decode(&bytes[..]) {
                    // A span takes two bytes or more on the wire; a vector grows by doubling.
                    prop_assert!(request.spans.capacity() <= bytes.len().max(4));
                    prop_assert!(request.token_ids.len() <= bytes.len());
                    is_refused_or_sound(&request);
                }
            }
        }
    }
}
