//! Decompression as a stream: memory is one window (at most 128 MiB), whatever the file holds.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::inputs::Compression;

/// The largest zstd window that is accepted, bytes: that of `zstd -d` without `--long`.
const MAX_WINDOW_BYTES: u64 = 128 << 20;

/// Reads `source`, undoing `compression`.
pub(super) fn open<'a>(
    source: impl Read + Send + 'a,
    compression: Compression,
) -> Box<dyn BufRead + Send + 'a> {
    let source = BufReader::with_capacity(1 << 16, source);
    match compression {
        Compression::Plain => Box::new(source),
        Compression::Gzip => Box::new(BufReader::new(MultiGzDecoder::new(source))),
        Compression::Zstd => Box::new(BufReader::with_capacity(1 << 16, ZstdFrames::new(source))),
    }
}

/// A zstd file is any number of frames end to end (RFC 8878, section 3), some of them to be
/// skipped; ruzstd reads one frame, so this starts the next where one ends.
struct ZstdFrames<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> ZstdFrames<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW_BYTES);
        Self {
            source,
            decoder,
            in_frame: false,
        }
    }

    /// Reads the next frame header; `false` at the end of the file.
    fn next_frame(&mut self) -> io::Result<bool> {
        if self.source.fill_buf()?.is_empty() {
            return Ok(false);
        }
        match self.decoder.init(&mut self.source) {
            Ok(()) => self.in_frame = true,
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                length,
                ..
            })) => {
                let skipped = io::copy(
                    &mut (&mut self.source).take(u64::from(length)),
                    &mut io::sink(),
                )?;
                if skipped < u64::from(length) {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Err(error) => return Err(invalid(error)),
        }
        Ok(true)
    }

    fn end_frame(&mut self) -> io::Result<()> {
        self.in_frame = false;
        match (
            self.decoder.get_checksum_from_data(),
            self.decoder.get_calculated_checksum(),
        ) {
            (Some(stored), Some(found)) if stored != found => Err(invalid(format!(
                "checksum of a zstd frame is {found:08x}, stored is {stored:08x}"
            ))),
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.in_frame && !self.next_frame()? {
                return Ok(0);
            }
            while self.in_frame {
                if self.decoder.can_collect() > 0 {
                    return self.decoder.read(out);
                }
                if self.decoder.is_finished() {
                    self.end_frame()?;
                } else {
                    self.decoder
                        .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                        .map_err(invalid)?;
                }
            }
        }
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
