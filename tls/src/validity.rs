//! When a certificate ends. rustls checks that of the other side and tells nobody its own, so this walks
//! the few fields of DER before it (RFC 5280, 4.1) and reads no others.

use tokio_rustls::rustls::pki_types::CertificateDer;

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0]`: the version, which old certificates do not have.
const VERSION: u8 = 0xa0;

/// When the first certificate of a chain ends, in seconds since 1970; those whose date cannot be read are
/// passed over.
pub(crate) fn chain_ends(chain: &[CertificateDer<'_>]) -> Option<i64> {
    chain.iter().filter_map(|one| not_after(one)).min()
}

/// `notAfter` of a certificate, in seconds since 1970; `None` when it is not where it belongs.
fn not_after(der: &[u8]) -> Option<i64> {
    let mut certificate = Reader(Reader(der).value(SEQUENCE)?);
    let mut fields = Reader(certificate.value(SEQUENCE)?);
    if fields.0.first() == Some(&VERSION) {
        fields.value(VERSION)?;
    }
    // Serial number, algorithm and issuer.
    fields.value(INTEGER)?;
    fields.value(SEQUENCE)?;
    fields.value(SEQUENCE)?;
    let mut validity = Reader(fields.value(SEQUENCE)?);
    validity.next()?;
    let (kind, text) = validity.next()?;
    time(kind, text)
}

/// What is left of some DER.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next element: its tag and its contents.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, length], mut rest) = self.0.split_first_chunk()?;
        let length = match length {
            short @ 0..=0x7f => usize::from(short),
            // So many bytes of length follow; no certificate has a part of 4 GiB.
            long @ 0x81..=0x84 => {
                let (bytes, after) = rest.split_at_checked(usize::from(long - 0x80))?;
                rest = after;
                bytes
                    .iter()
                    .fold(0, |sum, &byte| (sum << 8) + usize::from(byte))
            }
            _ => return None,
        };
        let (contents, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, contents))
    }

    /// The contents of the next element, which must have this tag.
    fn value(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, contents) = self.next()?;
        (found == tag).then_some(contents)
    }
}

/// `YYMMDDHHMMSSZ`, or with four digits of the year, in seconds since 1970.
fn time(kind: u8, text: &[u8]) -> Option<i64> {
    let text = str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let year_digits = match kind {
        UTC_TIME => 2,
        GENERALIZED_TIME => 4,
        _ => return None,
    };
    let whole = text.len() == year_digits + 10 && text.bytes().all(|b| b.is_ascii_digit());
    let (year, rest) = whole.then(|| text.split_at(year_digits))?;
    let year = match year.parse::<i64>().ok()? {
        short @ 0..50 if kind == UTC_TIME => 2000 + short,
        short if kind == UTC_TIME => 1900 + short,
        year => year,
    };
    let two = |at: usize| rest.get(at..at + 2)?.parse::<i64>().ok();
    let (month, day) = (two(0)?, two(2)?);
    let (hour, minute, second) = (two(4)?, two(6)?, two(8)?);
    let sound = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60;
    let seconds = hour * 3600 + minute * 60 + second;
    (sound && second <= 60).then(|| days_since_1970(year, month, day) * 86_400 + seconds)
}

/// Days before 1970 of such a calendar.
const BEFORE_1970: i64 = 719_469;

/// Days of the Gregorian calendar, by years that begin in March, so that leap days come last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = match month {
        1 | 2 => (year - 1, month + 9),
        _ => (year, month - 3),
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // Months of 31 and 30 days in turn from March on, but for July and August.
    let days_before = (153 * month + 2) / 5;
    365 * year + leap_days + days_before + day - BEFORE_1970
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs;

    use scone_test_support::certificates::Authority;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (text, seconds) in [
            ("19700101000000Z", 0),
            ("19691231235959Z", -1),
            ("20000229120000Z", 951_825_600),
            ("20000301000000Z", 951_868_800),
            ("21000301000000Z", 4_107_542_400),
            ("99991231235959Z", 253_402_300_799),
        ] {
            assert_eq!(
                time(GENERALIZED_TIME, text.as_bytes()),
                Some(seconds),
                "{text}"
            );
        }
        assert_eq!(time(UTC_TIME, b"491231235959Z"), Some(2_524_607_999));
        assert_eq!(time(UTC_TIME, b"500101000000Z"), Some(-631_152_000));
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in ["", "Z", "2613010000Z", "261301000000Z", "2601010000+1Z"] {
            assert_eq!(time(UTC_TIME, text.as_bytes()), None, "{text}");
        }
        assert_eq!(time(INTEGER, b"260101000000Z"), None);
        assert_eq!(time(GENERALIZED_TIME, b"260101000000Z"), None, "too short");
    }

    /// Of a certificate that ends then.
    fn der(year: i32, month: u8, day: u8) -> CertificateDer<'static> {
        let authority = Authority::new();
        let identity = authority.issue_until("server", &["localhost"], (year, month, day));
        CertificateDer::from_pem_slice(&fs::read(identity.cert).unwrap()).unwrap()
    }

    #[test]
    fn the_first_certificate_of_a_chain_to_end_says_when() {
        // Years before 2050 are written with two digits, later ones with four.
        let (early, late) = (der(2049, 12, 31), der(2050, 1, 1));
        let day = 86_400;
        assert_eq!(not_after(&early).unwrap() + day, not_after(&late).unwrap());
        assert_eq!(not_after(&late), Some(2_524_608_000));
        let chain = [late, early.clone()];
        assert_eq!(chain_ends(&chain), not_after(&early));
        assert_eq!(chain_ends(&[]), None);
    }

    #[test]
    fn damaged_certificates_have_no_date_or_another_and_no_panic() {
        let whole = der(2040, 6, 15).to_vec();
        for cut in 0..whole.len() {
            let found = not_after(&whole[..cut]);
            assert_eq!(found, None, "cut after {cut}");
        }
        for at in 0..whole.len() {
            for byte in [0, 0x17, 0x30, 0x7f, 0x80, 0x84, 0x85, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                not_after(&damaged);
            }
        }
    }
}
